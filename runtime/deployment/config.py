"""`deployment.toml`: what runs, and what the next trust root is made from.  Parsed strictly; pure.

- An unknown key, a wrong type, a float or two things of one name are a `ConfigError` that names file, place and what was
  expected.
- Numbers that must be exact are text (`"0.01"`); a float is refused rather than rounded.
- What decides over money (instruments, caps, limits, listings, house rules, venues, who publishes what) counts only as
  the operator signed it in the trust root; here stands what the next trust root is made from (`terms`).
"""

from __future__ import annotations

import ipaddress
import re
import tomllib
from decimal import Decimal
from typing import Annotated, Any, Final, Literal, NoReturn

import msgspec

from tallystick.runtime.keys.uri import parse_token_uri
from tallystick.schemas.errors import ConfigError, Malformed
from tallystick.schemas.limits import LimitRow, limit_rows
from tallystick.schemas.subjects import check_name
from tallystick.schemas.trust import Cap, Instrument

# The tokens of a deployment, each with a PIN of its own.
TOKENS: Final = ("operator", "signing", "roles", "custody", "portfolio", "audit", "issuer", "execution")
# … and with those that only some have: the keymaster's is there with `[rotation]`.
ALL_TOKENS: Final = (*TOKENS, "keymaster")
# The paper exchange's account whose key makes and deletes the others.
MASTER: Final = "master"
_ADDRESS: Final = re.compile(r"https://(?:[A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]):[1-9][0-9]{0,4}")
_EMAIL: Final = re.compile(r"[A-Za-z0-9._+-]{1,64}@[A-Za-z0-9.-]{1,128}")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")


class Endpoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a server of ours listens on the deployment's host; port 0: a free one at each start."""

    port: int

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise Malformed("PORT", f"a port is 0 to 65535, got {self.port}")


class VaultConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The vault: the embedded one on `port` (0: a free one at each start), or yours at `address`, vouched for by `ca`.

    `auth` is how components log in, `mount` the KV (version 2) with their secrets and the beginning of their roles' names;
    `lease_s` the seconds that an embedded one lends secrets for; `jwt` the service account's token for Kubernetes.
    """

    port: int = 0
    address: str = ""
    ca: str = ""
    auth: Literal["approle", "certificate", "kubernetes"] = "approle"
    mount: str = "tallystick"
    lease_s: Annotated[int, msgspec.Meta(ge=3, le=86_400)] = 300
    jwt: str = "/var/run/secrets/kubernetes.io/serviceaccount/token"

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise Malformed("PORT", f"a port is 0 to 65535, got {self.port}")
        check_name(self.mount, "vault.mount")
        if bool(self.address) != bool(self.ca):
            raise Malformed("VAULT", "vault.address and vault.ca belong together: yours, and what vouches for it")
        if self.address and not _ADDRESS.fullmatch(self.address):
            raise Malformed("VAULT", f"vault.address must be https://HOST:PORT, got {self.address!r}")
        if self.address and self.port:
            raise Malformed("VAULT", "vault.port is the embedded vault's, vault.address another's: only one of them")
        if self.auth == "kubernetes" and not self.address:
            raise Malformed("VAULT", 'vault.auth = "kubernetes" needs a vault of the cluster: vault.address')


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


class TokenConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A PKCS#11 token that is not SoftHSM's in the deployment's folder: its `uri` (RFC 7512), with the module.

    `env` names environment variables of `tallystick up` that the module needs (`YUBIHSM_PKCS11_CONF`); whoever opens the
    token is given them.
    """

    uri: str
    env: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        try:
            parse_token_uri(self.uri)
        except ConfigError as exc:
            raise Malformed(exc.code, exc.text) from exc
        _variables("env of a token", self.env)


class StrategyTokens(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whose tokens strategies show, where that is not `tallystick up` itself: a Kubernetes cluster, an OpenID provider.

    `{strategy}` in `subject` and `token_file` is the strategy's name.  Its keys: the file `jwks`, which the operator signs
    as it is at `tallystick admit`, or `url`, for which the certificate authority in the file `ca` vouches.
    """

    issuer: str
    audience: str
    subject: str
    token_file: str
    jwks: str = ""
    url: str = ""
    ca: str = ""

    def __post_init__(self) -> None:
        if bool(self.jwks) == bool(self.url) or bool(self.url) != bool(self.ca):
            raise Malformed("IDENTITY_CONFIG", "identity.strategies has jwks (a file), or url and ca (a file)")


class ExecutionKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The public key of execution's hardware token, where that is not the one that `tallystick init` made."""

    key: str
    algorithm: Literal["ed25519", "p256"] = "ed25519"


class IdentityConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How components prove themselves besides their certificates, where it is not as `tallystick init` made it."""

    strategies: StrategyTokens | None = None
    execution: ExecutionKey | None = None


class RotationConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The venue's API keys are changed by the master account's key: those of its `sub_account` (the e-mail).

    A key is bound to `addresses`, from which we reach the venue, and changed every `every_s` seconds.
    """

    sub_account: str
    addresses: tuple[str, ...]
    every_s: Annotated[int, msgspec.Meta(ge=60)] = 86_400

    def __post_init__(self) -> None:
        if not _EMAIL.fullmatch(self.sub_account):
            raise Malformed("ROTATION_CONFIG", f"rotation.sub_account is an e-mail address, got {self.sub_account!r}")
        try:
            for address in self.addresses:
                ipaddress.ip_address(address)
        except ValueError as exc:
            raise Malformed("ROTATION_CONFIG", f"rotation.addresses: {exc}") from exc
        if not self.addresses:
            raise Malformed("ROTATION_CONFIG", "rotation.addresses names at least one address")


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
    identity: IdentityConfig = IdentityConfig()
    strategies: tuple[StrategyConfig, ...] = ()
    observers: tuple[ObserverConfig, ...] = ()
    tokens: dict[str, TokenConfig] = {}
    vault: VaultConfig = VaultConfig()
    rotation: RotationConfig | None = None
    host: str = "127.0.0.1"
    session_lifetime_s: int = 0
    certificate_lifetime_s: Annotated[int, msgspec.Meta(ge=0)] = 0

    def __post_init__(self) -> None:
        check_name(self.deployment, "deployment")
        for label in self.tokens:
            if label not in ALL_TOKENS:
                raise Malformed(
                    "TOKENS", f"[tokens.{label}]: there is no such token; there are {', '.join(ALL_TOKENS)}"
                )
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
