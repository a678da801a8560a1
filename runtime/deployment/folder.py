"""The deployment folder: where everything lies, and `deployment.toml`, which says what runs.

- `deployment.toml` is parsed strictly: an unknown key, a wrong type, a float or two things of one name are
  a `ConfigError` that names file, place and what was expected.
- Numbers that must be exact are text (`"0.01"`); a float is refused rather than rounded.
- What decides over money (instruments, caps, limits, listings, house rules, venues, who publishes what) counts only as
  the operator signed it in the trust root; here stands what the next trust root is made from (`terms`).

The folder is trusted with availability and configuration: an attacker who can write to it can change the code and the
parameters of strategies and where prices come from, but can forge no key, no trust root, no cap and no limit, and opens
no token or keystore without the master PIN.
"""

from __future__ import annotations

import re
import tomllib
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NoReturn

import msgspec

from tallystick.infra.nats import topology
from tallystick.infra.nats.claims import BusKeys
from tallystick.schemas.errors import NOT_DECODED, ConfigError, Malformed, Unverified
from tallystick.schemas.limits import LimitRow, limit_rows
from tallystick.schemas.nats_jwt import encode_key
from tallystick.schemas.subjects import check_name
from tallystick.schemas.trust import Cap, Instrument, TrustRoot, open_trust_roots

CONFIG_NAME: Final = "deployment.toml"
# The tokens that `tallystick init` makes, each with a PIN of its own.
TOKENS: Final = ("operator", "signing", "roles", "custody", "portfolio", "audit")
# CKA_IDs of keys: token operator
KEY_OPERATOR_ROOT: Final = b"operator-root"
KEY_PERSON: Final = b"operator-person"
KEY_CA: Final = b"ca"
# … token signing, besides one account key a component
KEY_OPERATOR: Final = b"operator-signing"
KEY_CORE_ACCOUNT: Final = b"core-account"
KEY_ACTIVATION: Final = b"activation"
KEY_ADMIN: Final = b"admin"
KEY_SYSTEM_ACCOUNT: Final = b"system-account"
# … token roles, besides one role key a component and the key of each issuing CA
KEY_SYSTEM_ROLE: Final = b"system-role"
# … tokens custody and portfolio (an API key each at the venue), and audit
KEY_VENUE: Final = b"venue"
KEY_CHECKPOINT: Final = b"checkpoint"

# Which of the tokens a component opens.
_OWN_TOKENS: Final = {
    "authority": ("roles", "signing"),
    "custody": ("custody",),
    "portfolio": ("portfolio",),
    "audit": ("audit",),
}
# A process whose component the operator revoked ends with this.
EXIT_REVOKED: Final = 3
# Certificates besides those of the components: the broker's and the operator's own.
BROKER: Final = "nats"
OPERATOR: Final = "operator"
SERVERS: Final = (BROKER, "authority", "paper-exchange")

PIN_STORE_KEY: Final = "nats.store_key"
PIN_ARCHIVE_KEY: Final = "audit.archive_key"
# sockaddr_un holds 108 bytes with the final zero; `/` and a socket's name (`custody.sock`) take up to 24 of them.
MAX_RUN_PATH: Final = 108 - 1 - 24
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")


def account_key_id(component: str) -> bytes:
    """CKA_ID of a component's account key in token `signing`."""
    return b"account/" + component.encode()


def role_key_id(component: str) -> bytes:
    """CKA_ID of a component's role key in token `roles`."""
    return b"role/" + component.encode()


def pin_name(token: str) -> str:
    """The keystore's name of a token's user PIN (its security officer's PIN is `<name>.so`)."""
    return f"hsm.{token}.pin"


def passphrase_name(component: str) -> str:
    """The keystore's name of the passphrase of a component's TLS key."""
    return f"pki.{component}.passphrase"


def api_key_name(component: str) -> str:
    """The keystore's name of the venue's API key id that `custody` or `portfolio` uses."""
    return f"venue.{component}.api_key"


class Endpoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a server of ours listens on the deployment's host; port 0: a free one at each start."""

    port: int

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise Malformed("PORT", f"a port is 0 to 65535, got {self.port}")


class VenueConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The venue: subjects call it `name`; `host` is its API's host and port, `account` ours there."""

    name: str
    kind: Literal["paper", "binance"]
    host: str
    account: str

    def __post_init__(self) -> None:
        check_name(self.name, "venue.name")
        check_name(self.account, "venue.account")
        if self.kind == "paper":
            self.port()

    @property
    def api(self) -> Literal["binance-spot"]:
        """What its API is, in the trust root's words: the paper exchange speaks Binance's."""
        return "binance-spot"

    def port(self) -> int:
        """The port in `host`, 443 where it names none.  Raises `Malformed`."""
        _, colon, port = self.host.rpartition(":")
        if not colon and self.kind == "binance":
            return 443
        if not (port.isascii() and port.isdigit() and 0 < int(port) <= 65535):
            raise Malformed("VENUE_HOST", f"venue.host must be HOST:PORT, got {self.host!r}")
        return int(port)


class StrategyConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One strategy, in a process of its own.

    `module` is a Python module or a path to a .py file; `instruments` are the unified symbols that it may trade; `env`
    are the names of environment variables of `tallystick up` that its process is given.
    """

    name: str
    module: str
    instruments: tuple[str, ...]
    params: dict[str, str] = {}
    env: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_name(f"strategy-{self.name}", "strategies.name with its prefix")
        _variables(f"env of strategy {self.name}", self.env)

    @property
    def component(self) -> str:
        """Its identity name."""
        return f"strategy-{self.name}"


class ObserverConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One observer, in a process of its own: `module` is a Python module or a path to a .py file with a `Component`.

    `env` is as a strategy's.
    """

    name: str
    module: str
    env: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_name(f"observer-{self.name}", "observers.name with its prefix")
        _variables(f"env of observer {self.name}", self.env)

    @property
    def component(self) -> str:
        """Its identity name."""
        return f"observer-{self.name}"


class MarketDataConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where prices come from.

    - `dump`: exchange dump files `paths` (relative to the folder), played `speed` times as fast as recorded; of them the
      first `most` trades and quotes, 0 for all;
    - `synthetic`: `count` trades made up from `seed`, at `speed`;
    - `live`: the venue's feed.

    `symbols` are unified ones (`XRP/ETH`), empty for every instrument; a feed is stale after `stale_ms`.
    """

    source: Literal["dump", "synthetic", "live"]
    paths: tuple[str, ...] = ()
    most: int = 0
    speed: Decimal = Decimal(1)
    seed: int = 1
    count: int = 1_000_000
    symbols: tuple[str, ...] = ()
    stale_ms: int = 5_000

    def __post_init__(self) -> None:
        if (self.source == "dump") != bool(self.paths):
            raise Malformed("MARKET_DATA", f"source {self.source!r} with {len(self.paths)} paths: only dump has them")
        if not (self.speed.is_finite() and self.speed > 0):
            raise Malformed("MARKET_DATA", f"market_data.speed must be above zero, got {self.speed}")
        if self.most < 0 or (self.most and self.source != "dump"):
            raise Malformed("MARKET_DATA", f"most {self.most} must be at least 0, and is for dumps alone")
        if self.count < 1 or self.stale_ms < 1:
            raise Malformed("MARKET_DATA", f"count {self.count} and stale_ms {self.stale_ms} must be at least 1")


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`deployment.toml`; the lifetimes, where above 0, only shorten.  `limits` is read as `schemas.limits` says."""

    deployment: str
    broker: Endpoint
    authority: Endpoint
    venue: VenueConfig
    instruments: tuple[Instrument, ...]
    limits: dict[str, Any]
    caps: tuple[Cap, ...]
    market_data: MarketDataConfig
    strategies: tuple[StrategyConfig, ...] = ()
    observers: tuple[ObserverConfig, ...] = ()
    host: str = "127.0.0.1"
    session_lifetime_s: int = 0
    certificate_lifetime_s: Annotated[int, msgspec.Meta(ge=0)] = 0

    def __post_init__(self) -> None:
        check_name(self.deployment, "deployment")
        _unique("strategies.name", [s.name for s in self.strategies])
        _unique("observers.name", [o.name for o in self.observers])
        _unique("instruments.symbol", [i.symbol for i in self.instruments])
        _unique("instruments.venue_symbol", [i.venue_symbol for i in self.instruments])
        _unique("caps.asset", [f"{c.account} {c.asset}" for c in self.caps])
        if self.venue.kind != "paper" and self.market_data.source != "live":
            raise Malformed(
                "MARKET_DATA",
                f'source = "{self.market_data.source}" with venue kind = "{self.venue.kind}": a real venue is traded on '
                'its own prices alone (source = "live"); what is made up or recorded is for kind = "paper"',
            )
        if not self.instruments:
            raise Malformed("INSTRUMENTS", "at least one [[instruments]] is needed")
        for instrument in self.instruments:
            if instrument.venue != self.venue.name:
                raise Malformed(
                    "INSTRUMENTS", f"{instrument.symbol}: venue {instrument.venue!r}, not {self.venue.name!r}"
                )
        for cap in self.caps:
            if cap.account != self.venue.account:
                raise Malformed("CAPS", f"cap for account {cap.account!r}, the venue's is {self.venue.account!r}")
        known = {i.symbol for i in self.instruments}
        wanted = [("market_data.symbols", symbol) for symbol in self.market_data.symbols]
        wanted += [(f"instruments of strategy {s.name}", symbol) for s in self.strategies for symbol in s.instruments]
        for where, symbol in wanted:
            if symbol not in known:
                raise Malformed("INSTRUMENTS", f"{where}: {symbol!r} is none of {', '.join(sorted(known))}")
        self.limit_rows()

    def limit_rows(self) -> tuple[LimitRow, ...]:
        """What `limits` says for every strategy and quote asset.  Raises `Malformed`."""
        return limit_rows(self.limits, (s.name for s in self.strategies), (i.quote for i in self.instruments))


def _unique(what: str, values: list[str]) -> None:
    for value in values:
        if values.count(value) > 1:
            raise Malformed("TWICE", f"{what}: {value!r} stands twice")


def _variables(what: str, names: tuple[str, ...]) -> None:
    for name in names:
        if not _VARIABLE.fullmatch(name):
            raise Malformed("ENV", f"{what}: {name!r} is no name of an environment variable")


def _no_float(text: str) -> NoReturn:
    raise Malformed("FLOAT", f'{text} is a float, which is not exact; write it as text: "{text}"')


def parse_config(text: str, source: str) -> Config:
    """Parse `deployment.toml`; `source` names it in errors.  Raises `ConfigError`."""
    try:
        return msgspec.convert(tomllib.loads(text, parse_float=_no_float), Config)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, RecursionError) as exc:
        raise ConfigError("DEPLOYMENT_FILE", f"{source}: {exc}") from exc
    except Malformed as exc:
        raise ConfigError("DEPLOYMENT_FILE", f"{source}: {exc.text}") from exc


class Deployment:
    """A deployment folder: its paths and its configuration."""

    def __init__(self, directory: Path, config: Config) -> None:
        self.directory = directory
        self.config = config

    @classmethod
    def load(cls, directory: Path) -> Deployment:
        """The deployment in `directory`.  Raises `ConfigError`."""
        directory = directory.absolute()
        path = directory / CONFIG_NAME
        try:
            mode = directory.stat().st_mode
            text = path.read_text("utf-8")
        except FileNotFoundError as exc:
            raise ConfigError(
                "DEPLOYMENT_FILE", f"{path} does not exist; make a deployment with `tallystick init {directory}`"
            ) from exc
        except (OSError, UnicodeDecodeError) as exc:
            raise ConfigError("DEPLOYMENT_FILE", f"{path} cannot be read: {exc}") from exc
        if mode & 0o022:
            raise ConfigError("DEPLOYMENT_FILE", f"others may write to {directory}: chmod 700 {directory}")
        return cls(directory, parse_config(text, str(path)))

    @property
    def name(self) -> str:
        """The deployment's id, which every statement carries."""
        return self.config.deployment

    @property
    def trust(self) -> Path:
        """The trust root's versions, `root-<number>.note`."""
        return self.directory / "trust"

    @property
    def pinned_key(self) -> Path:
        """The operator root's public key in hex: the one thing that verifiers must be told out of band."""
        return self.trust / "operator-root.pub"

    @property
    def policy(self) -> Path:
        """The gateway's policies."""
        return self.directory / "policy"

    @property
    def pki(self) -> Path:
        """Certificates and encrypted keys."""
        return self.directory / "pki"

    @property
    def ca(self) -> Path:
        """The certificate of the operator's CA: what vouches for the paper exchange to clients that are none of ours."""
        return self.pki / "ca.pem"

    @property
    def issuing_ca(self) -> Path:
        """The certificate of the issuing CA: what the deployment's processes take for an anchor."""
        return self.pki / "issuing.pem"

    @property
    def venue_ca(self) -> Path | None:
        """What vouches for the venue: our own CA for the paper exchange, the machine's authorities (None) for another."""
        return self.ca if self.config.venue.kind == "paper" else None

    def identity(self, component: str) -> Path:
        """The certificate and the encrypted key of a component, of the broker (`nats`) or of the operator."""
        return self.pki / f"{component}.pem"

    @property
    def keystore(self) -> Path:
        """All PINs and passphrases, under the master PIN."""
        return self.directory / "keystore"

    def token(self, label: str) -> Path:
        """Where SoftHSM keeps the token `label`, one of `TOKENS`."""
        return self.directory / "hsm" / label

    @property
    def jetstream(self) -> Path:
        """The broker's store."""
        return self.directory / "nats" / "jetstream"

    @property
    def jwt(self) -> Path:
        """The broker's account resolver."""
        return self.directory / "nats" / "jwt"

    @property
    def operator_token(self) -> Path:
        """The operator's token, signed by the operator root at `tallystick init`."""
        return self.directory / "nats" / "operator.jwt"

    @property
    def bus_keys(self) -> Path:
        """The public keys of the broker's accounts and roles, JSON."""
        return self.directory / "nats" / "keys.json"

    @property
    def run(self) -> Path:
        """Sockets, ports and process ids of what runs."""
        return self.directory / "run"

    def log(self, process: str) -> Path:
        """The log of a process, one JSON object a line."""
        return self.directory / "log" / f"{process}.jsonl"

    def state(self, component: str) -> Path:
        """What a component keeps for itself (journals, counters); it makes the folder."""
        return self.directory / "state" / component

    @property
    def archive(self) -> Path:
        """Audit's Parquet files and manifest."""
        return self.directory / "archive"

    @property
    def paper_exchange(self) -> Path:
        """The paper exchange's configuration, JSON."""
        return self.directory / "paper-exchange.json"

    @property
    def strategies(self) -> tuple[str, ...]:
        """The names of the strategies, as a topology expands them."""
        return tuple(s.name for s in self.config.strategies)

    @property
    def user_code(self) -> tuple[StrategyConfig | ObserverConfig, ...]:
        """Whose processes run code that is not ours."""
        return (*self.config.strategies, *self.config.observers)

    @property
    def listed(self) -> dict[tuple[str, str], tuple[str, ...]]:
        """(venue, symbol) -> the strategies that may trade there."""
        return {
            (i.venue, i.symbol): tuple(s.name for s in self.config.strategies if i.symbol in s.instruments)
            for i in self.config.instruments
        }

    def bus(self) -> topology.Bus:
        """The topology with this deployment's strategies and observers.  Raises `ConfigError`."""
        return topology.deployed(self.name, self.strategies, tuple(o.name for o in self.config.observers))

    def variables(self, component: str) -> tuple[str, ...]:
        """The names of the environment variables that the deployment gives to a component besides what all get."""
        return next((made.env for made in self.user_code if made.component == component), ())

    def secret_names(self, component: str) -> tuple[str, ...]:
        """The keystore's names of what a component gets, and nothing else."""
        names = [passphrase_name(component)]
        names += [pin_name(token) for token in _OWN_TOKENS.get(component, ())]
        if component in ("custody", "portfolio"):
            names.append(api_key_name(component))
        if component == "audit":
            names.append(PIN_ARCHIVE_KEY)
        return tuple(names)

    def load_trust(self, pinned: bytes | None = None) -> tuple[TrustRoot, ...]:
        """All versions of the trust root, verified from `pinned` (32 bytes; default: the folder's `pinned_key`).

        Raises `ConfigError` where files are missing, `Malformed` and `Unverified` where they are not right.
        """
        try:
            if pinned is None:
                pinned = bytes.fromhex(self.pinned_key.read_text("ascii").strip())
            count = len(list(self.trust.glob("root-*.note")))
            notes = [(self.trust / f"root-{n}.note").read_text("utf-8") for n in range(1, count + 1)]
        except OSError as exc:
            raise ConfigError(
                "TRUST_ROOT", f"cannot read {exc.filename}: {exc.strerror}; `tallystick init` makes it"
            ) from exc
        except ValueError as exc:
            raise ConfigError(
                "TRUST_ROOT", f"{self.trust}: {self.pinned_key.name} is no hex or a note is no text"
            ) from exc
        try:
            roots = open_trust_roots(notes, pinned)
        except (Malformed, Unverified) as exc:
            raise type(exc)(exc.code, f"{self.trust}: {exc.text}; restore the folder from a backup") from exc
        if roots[-1].deployment != self.name:
            raise Unverified("TRUST_ROOT_DEPLOYMENT", f"trust root of {roots[-1].deployment}, this is {self.name}")
        return roots

    def newest_note(self) -> str:
        """The signed note of the trust root in force.  Raises as `load_trust` does."""
        return (self.trust / f"root-{self.load_trust()[-1].number}.note").read_text("utf-8")

    def load_bus_keys(self) -> BusKeys:
        """The public keys of the broker's accounts and roles, checked against the trust root as far as that names them.

        It may hold keys that the trust root does not name (yet): `tallystick admit` writes them first.

        Raises `ConfigError` and `Unverified`, as `load_trust` does.
        """
        root = self.load_trust()[-1]
        try:
            keys = msgspec.json.decode(self.bus_keys.read_bytes(), type=BusKeys)
        except (OSError, *NOT_DECODED) as exc:
            raise ConfigError("BUS_KEYS", f"{self.bus_keys}: {exc}; `tallystick init` makes it") from exc
        found = {n: (encode_key("A", k.role), encode_key("A", k.account)) for n, k in keys.components.items()}
        wanted = {n: (c.role_key, c.account) for n, c in root.components.items()}
        core = encode_key("A", keys.core_account)
        if (
            any(found.get(n) != keys_of for n, keys_of in wanted.items())
            or core != root.core_account
            or keys.operator.hex() != root.operator_root
        ):
            raise Unverified("BUS_KEYS", f"{self.bus_keys} does not agree with trust root {root.number}")
        return keys
