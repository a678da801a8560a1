"""`tallystick init`: the key ceremony, which makes a deployment folder with every key, certificate and document.

- Every private key but those of TLS is born in a token; TLS keys are stored encrypted.  PINs and passphrases are
  random and live in the keystore alone, under the master PIN.
- The operator root signs trust root 1 and the broker's operator token here, and is not needed again until
  something about keys, components, instruments or caps changes.
- Everything is built in a hidden folder beside DIR and renamed at the end: DIR is there whole, or not at all.
- A DIR that holds anything is refused.
"""

from __future__ import annotations

import base64
import importlib.resources
import json
import os
import secrets as entropy
import shutil
import socket
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from decimal import Decimal
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Final

import msgspec

from tallystick.infra.lockfile import Lockfile
from tallystick.infra.nats import topology
from tallystick.infra.nats.claims import BusKeys, ComponentKeys, Validity, operator_token
from tallystick.runtime.deployment import certificates
from tallystick.runtime.deployment import folder as layout
from tallystick.runtime.deployment.config import MASTER, ROTATION_TEMPLATE, StrategyConfig, parse_config
from tallystick.runtime.deployment.folder import Deployment
from tallystick.runtime.deployment.methods import Made, method_of
from tallystick.runtime.deployment.proof import api_key_file
from tallystick.runtime.deployment.terms import terms
from tallystick.runtime.durable import sync, sync_tree, write_durably
from tallystick.runtime.keys.hsm import Token, create_token
from tallystick.runtime.keys.key_info import dated
from tallystick.runtime.keys.keystore import Keystore, Secret, check_master_pin
from tallystick.runtime.keys.signers import HsmSigner
from tallystick.schemas.bounds import SECOND
from tallystick.schemas.errors import ConfigError
from tallystick.schemas.nats_jwt import encode_key
from tallystick.schemas.subjects import check_name
from tallystick.schemas.trust import ROOT_KEY_NAME, ComponentTrust, TrustRoot, sign_document

TRUST_VALIDITY: Final = timedelta(days=365)
# The issuing CA that a deployment starts with.
FIRST: Final = 1
DEFAULT_STRATEGIES: Final = (
    StrategyConfig(
        name="momentum",
        module="tallystick.components.strategy.examples.momentum",
        instruments=("XRP/ETH", "BTC/USDT"),
    ),
)
# Below Linux's ephemeral ports (32768 on), so that no outgoing connection takes one between two starts.
PORTS: Final = range(20_000, 32_000)
_API_KEY_ALPHABET: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"

DEFAULT_TEMPLATE: Final = """\
# What runs in this deployment.  Exact numbers are text.  Venue, instruments, limits, caps and who trades what count as
# the operator signed them (trust/root-*.note): after a change here run `tallystick admit`.

deployment = {deployment}
host = "127.0.0.1"

[broker]
port = {broker}

[authority]
port = {authority}

[vault]
port = {vault}

[venue]
name = "paper"
kind = "paper"
host = "127.0.0.1:{venue}"
account = "main"

# market_price: what an order counts at in the caps unless it names a higher price; well above any plausible price.
[[instruments]]
venue = "paper"
symbol = "XRP/ETH"
venue_symbol = "XRPETH"
base = "XRP"
quote = "ETH"
tick = "0.00000001"
step = "1"
min_notional = "0.005"
market_price = "0.01"

[[instruments]]
venue = "paper"
symbol = "BTC/USDT"
venue_symbol = "BTCUSDT"
base = "BTC"
quote = "USDT"
tick = "0.01"
step = "0.00001"
min_notional = "10"
market_price = "500000"

# Per strategy and per quote asset.  [limits.quote.ASSET], [limits.strategy.NAME] and [limits.strategy.NAME.quote.ASSET]
# override single lines.
[limits]
max_notional = "5000"
max_qty = "10000"
max_open_notional = "20000"
max_position_notional = "20000"
max_gross_notional = "50000"
collar_bps = 200
messages_per_second = 10
burst = 20
stale_ms = 5000

# What custody never exceeds for the account, whatever the gateway permits.  An order counts in both its assets: its
# quantity in the base; in the quote its worth, at market_price or its own price, whichever is higher.
[[caps]]
account = "main"
asset = "ETH"
max_order = "10"
max_hourly = "500"

[[caps]]
account = "main"
asset = "XRP"
max_order = "10000"
max_hourly = "500000"

[[caps]]
account = "main"
asset = "USDT"
max_order = "10000"
max_hourly = "500000"

[[caps]]
account = "main"
asset = "BTC"
max_order = "0.1"
max_hourly = "10"

[market_data]
source = "synthetic"
seed = 1
speed = "1"
"""
# What the paper exchange gives the account to play with, of quote assets alone: what a strategy sells it must have bought.
# So many times the asset's hourly cap, and of what most people trade in no less than this.
_BALANCES: Final = {"USDT": Decimal(100_000), "ETH": Decimal(100)}
_BALANCE_CAPS: Final = 10
_MAX_BALANCE: Final = Decimal(10**15)


class TokenAccess(msgspec.Struct, frozen=True):
    """A token that exists already: its PKCS#11 URI and its user PIN."""

    uri: str
    pin: Secret


def init(
    directory: Path,
    deployment: str,
    master_pin: Secret,
    clock: Callable[[], int],
    *,
    strategies: Sequence[StrategyConfig] = DEFAULT_STRATEGIES,
    template: str = DEFAULT_TEMPLATE,
    progress: Callable[[str], None] = lambda _: None,
    tokens: Mapping[str, TokenAccess] | None = None,
    rotation: bool = False,
) -> Deployment:
    """Make a paper-trading deployment in `directory` and return it.

    `template` is `deployment.toml` without its strategies, with `{deployment}` (a TOML string) and the ports `{broker}`,
    `{authority}`, `{vault}`, `{venue}` to fill in.  `clock` gives Unix nanoseconds; `progress` is told each step; `tokens` are
    those that are not SoftHSM's own, by label; with `rotation` there is a keymaster.  Raises `ConfigError` or `Malformed`, and then
    leaves nothing behind.
    """
    check_name(deployment, "deployment")
    check_master_pin(master_pin)
    directory = directory.absolute()
    template += ROTATION_TEMPLATE if rotation else ""
    if len(os.fsencode(directory / "run")) > layout.MAX_RUN_PATH:
        raise ConfigError(
            "INIT_PATH", f"{directory} is too long a path for Unix sockets; at most {layout.MAX_RUN_PATH - 4} bytes"
        )
    _require_free(directory)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        lock = Lockfile.take(directory.with_name(f".{directory.name}.init"))
    except OSError as exc:
        raise _unusable(directory.parent, exc) from exc
    with lock:
        temporary = directory.with_name(f".{directory.name}.tmp-{entropy.token_hex(4)}")
        try:
            temporary.mkdir(mode=0o700)
        except OSError as exc:
            raise _unusable(temporary, exc) from exc
        try:
            _Ceremony(temporary, deployment, strategies, template, clock(), progress, tokens or {}).run(master_pin)
            sync_tree(temporary)
            # If we crash before this line, a hidden folder is left, which nothing reads; after it, the deployment is
            # whole.
            try:
                temporary.rename(directory)
            except OSError as exc:
                raise ConfigError("INIT_PATH", f"cannot rename to {directory}: {exc.strerror}") from exc
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    sync(directory.parent)
    return Deployment.load(directory)


def _unusable(path: Path, exc: OSError) -> ConfigError:
    return ConfigError("INIT_PATH", f"cannot make {path}: {exc.strerror}; choose another place")


class _Ceremony:
    """Builds the folder `temporary`; owns it until `init` renames it."""

    def __init__(
        self,
        temporary: Path,
        deployment: str,
        strategies: Sequence[StrategyConfig],
        template: str,
        now: int,
        progress: Callable[[str], None],
        tokens: Mapping[str, TokenAccess],
    ) -> None:
        text = _render(template, deployment, strategies, tokens)
        self.text = text
        self.config = parse_config(text, layout.CONFIG_NAME)
        self.paths = Deployment(temporary, self.config)
        self.bus = self.paths.bus()
        self.now = now
        self.progress = progress
        self.tokens = tokens
        self.secrets: dict[str, Secret] = {}

    def run(self, master_pin: Secret) -> None:
        """Every step, in an order in which each finds the public keys that it needs."""
        paths = self.paths
        for folder in (
            paths.trust, paths.policy, paths.pki, paths.tokens, paths.jetstream.parent, paths.jetstream,
            paths.jwt, paths.run, paths.log("x").parent, paths.archive, paths.state("x").parent,
        ):  # fmt: skip
            folder.mkdir(mode=0o700)
        names = list(self.bus.components)
        self.progress("token signing: the operator's signing key and the broker's accounts")
        accounts = [layout.account_key_id(name) for name in names]
        own = [
            layout.KEY_OPERATOR, layout.KEY_CORE_ACCOUNT, layout.KEY_ACTIVATION, layout.KEY_ADMIN,
            layout.KEY_SYSTEM_ACCOUNT,
        ]  # fmt: skip
        signing = self._make_token("signing", [*own, *accounts])
        self.progress("token roles: one role key a component")
        roles = self._make_token("roles", [layout.KEY_SYSTEM_ROLE, *(layout.role_key_id(name) for name in names)])
        with self._open("roles", writable=True) as token:
            issuing = token.generate_p256(certificates.issuing_key_id(FIRST), dated("issuing CA", self.now))
        # A replay zone has neither, so no key to any venue is ever made for it.
        traders = [name for name in _API_PERMISSIONS if name in self.bus.components]
        if traders:
            self.progress(f"tokens {', '.join(traders)}: the API keys at the venue")
        api_keys = {name: self._make_token(name, [layout.KEY_VENUE])[layout.KEY_VENUE] for name in traders}
        self.progress("token audit: the checkpoint key")
        self._make_token("audit", [layout.KEY_CHECKPOINT])
        made = self._make_proofs()
        self.progress("token operator: the operator root and the certificate authority")
        person = self._make_token("operator", [layout.KEY_OPERATOR_ROOT, layout.KEY_PERSON])[layout.KEY_PERSON]
        self._copy_policy()
        with self._open("operator", writable=True) as token:
            token.generate_p256(layout.KEY_CA, dated("ca", self.now))
            certificates.sign_issuing_ca(paths, token, FIRST, issuing, self.now)
            root = token.signer(layout.KEY_OPERATOR_ROOT)
            keys = BusKeys(
                operator=root.public,
                operator_signing=signing[layout.KEY_OPERATOR],
                system_account=signing[layout.KEY_SYSTEM_ACCOUNT],
                system_role=roles[layout.KEY_SYSTEM_ROLE],
                core_account=signing[layout.KEY_CORE_ACCOUNT],
                activation=signing[layout.KEY_ACTIVATION],
                admin=signing[layout.KEY_ADMIN],
                components={
                    name: ComponentKeys(
                        account=signing[layout.account_key_id(name)], role=roles[layout.role_key_id(name)]
                    )
                    for name in names
                },
            )
            write_trust_root(paths, self.bus, keys, root, person, self.now, made)
            validity = Validity(issued_s=self.now // SECOND, expires_s=0)
            self._write(paths.operator_token, operator_token(root, keys, self.config.deployment, validity).encode())
        with self._open("roles", writable=False) as token:
            authority = certificates.issuing_authority(paths, token)
            for name in certificates.names(paths):
                passphrase = self._passphrase(name)
                certificates.write_identity(paths, passphrase, authority, name, self.now)
        self._write(paths.bus_keys, msgspec.json.format(msgspec.json.encode(keys), indent=2))
        if "paper-exchange" in self.bus.components:
            self._write_paper_exchange(api_keys)
        self._write(paths.directory / layout.CONFIG_NAME, self.text.encode())
        self.progress("keystore")
        self.secrets[layout.PIN_STORE_KEY] = Secret(entropy.token_hex(32))
        self.secrets[layout.PIN_ARCHIVE_KEY] = Secret(entropy.token_hex(32))
        Keystore.create(paths.keystore, master_pin, self.secrets)

    def _passphrase(self, name: str) -> Secret:
        return self.secrets.setdefault(layout.passphrase_name(name), Secret.random())

    def _make_proofs(self) -> Made:
        """What components prove themselves by besides their certificates."""
        wanted = {name: component.method for name, component in self.bus.components.items()}
        keys: dict[bytes, bytes] = {}
        if "hardware-token" in wanted.values():  # in a replay zone nobody shows either
            self.progress("tokens issuer and execution: what strategies and execution prove themselves by")
            keys |= self._make_token(layout.ISSUER, [layout.KEY_ISSUER])
            keys |= self._make_token(layout.HARDWARE, [layout.KEY_IDENTITY])
        return Made(
            issuer=keys.get(layout.KEY_ISSUER, b""),
            execution=keys.get(layout.KEY_IDENTITY, b""),
            api_keys={
                name: api_key_file(self.paths, name, self._passphrase(name)).begin()
                for name, method in wanted.items()
                if method == "api-key"
            },
        )

    def _make_token(self, label: str, key_ids: Sequence[bytes]) -> dict[bytes, bytes]:
        """Ed25519 keys in a new token, or in the one that the configuration names; their raw public keys by id."""
        name, place = layout.pin_name(label), self.paths.token(label)
        if isinstance(place, Path):
            self.secrets[name], self.secrets[f"{name}.so"] = Secret.random(), Secret.random()
            create_token(place, label, self.secrets[f"{name}.so"], self.secrets[name])
        elif label in self.tokens:
            self.secrets[name] = self.tokens[label].pin
        else:
            raise ConfigError("HSM_PIN", f"the PIN of token {label!r} is needed: {place}")
        with self._open(label, writable=True) as token:
            return {key_id: token.generate_ed25519(key_id, dated(key_id.decode(), self.now)) for key_id in key_ids}

    def _open(self, label: str, *, writable: bool) -> Token:
        return Token.open(self.paths.token(label), label, self.secrets[layout.pin_name(label)], writable=writable)

    def _write_paper_exchange(self, public_keys: dict[str, bytes]) -> None:
        """The venue's side: instruments, balances, and the API keys with no more permissions than they need."""
        keys = []
        for component, public in public_keys.items():
            api_key = "".join(entropy.choice(_API_KEY_ALPHABET) for _ in range(64))
            self.secrets[layout.api_key_name(component)] = Secret(api_key)
            keys.append(
                {
                    "api_key": api_key,
                    "public_key": base64.b64encode(public).decode(),
                    "account": MASTER if component == topology.KEYMASTER else self.config.venue.account,
                    "permissions": _API_PERMISSIONS[component],
                    "ips": ["127.0.0.1"],
                    # Execution sees the name of the key that signs for it, and must not read balances with it.
                    "listen_keys": False,
                }
            )
        instruments = [
            {
                "symbol": i.venue_symbol,
                "name": i.symbol,
                "base": i.base,
                "quote": i.quote,
                "tick": f"{i.tick:f}",
                "step": f"{i.step:f}",
                "min_notional": f"{i.min_notional:f}",
            }
            for i in self.config.instruments
        ]
        quotes = {i.quote for i in self.config.instruments}
        given = dict(_BALANCES)
        for cap in self.config.caps:
            if cap.asset in quotes:
                wanted = min(cap.max_hourly * _BALANCE_CAPS, _MAX_BALANCE)
                given[cap.asset] = max(wanted, given.get(cap.asset, Decimal(0)))
        account = self.config.venue.account
        document: dict[str, Any] = {
            "instruments": instruments,
            "accounts": {account: {asset: f"{amount:.8f}" for asset, amount in given.items()}},
            "keys": keys,
        }
        if self.config.rotation is not None:
            document["accounts"] |= {MASTER: {}}
            document["sub_accounts"] = {self.config.rotation.sub_account: {"master": MASTER, "account": account}}
        self._write(self.paths.paper_exchange, json.dumps(document, indent=2).encode())

    def _copy_policy(self) -> None:
        source = importlib.resources.files("tallystick.infra") / "policies"
        files: list[Traversable] = [f for f in source.iterdir() if f.name.endswith((".cedar", ".cedarschema"))]
        if not files:
            raise ConfigError("INIT_POLICY", f"no policies in {source}: the installation is incomplete")
        for file in files:
            self._write(self.paths.policy / file.name, file.read_bytes())

    def _write(self, path: Path, data: bytes) -> None:
        write_durably(path, data, 0o600)


# Queries of its own orders come under "read" at the venue; custody signs no other reading request.
_API_PERMISSIONS: Final = {
    "custody": ["read", "trade"],
    "portfolio": ["read"],
    topology.KEYMASTER: ["read", "manage"],
}


def write_trust_root(
    paths: Deployment,
    bus: topology.Bus,
    keys: BusKeys,
    root: HsmSigner,
    person: bytes,
    now: int,
    made: Made,
    number: int = 1,
) -> None:
    """Version `number` of the trust root from what the files say, signed by the operator root; with the first the key to pin.

    `made` is what components prove themselves by; `person` is the public key that arms and re-arms: no process has its token, so neither can the authority.
    """
    said = terms(paths)
    document = TrustRoot(
        deployment=paths.name,
        number=number,
        issued=now,
        expires=now + int(TRUST_VALIDITY.total_seconds()) * SECOND,
        operator_root=root.public.hex(),
        operator=person.hex(),
        core_account=encode_key("A", keys.core_account),
        components={
            name: ComponentTrust(
                role_key=encode_key("A", keys.components[name].role),
                account=encode_key("A", keys.components[name].account),
                publishes=component.publishes,
                lifetime=component.lifetime_s,
                method=method_of(paths, component, made),
            )
            for name, component in bus.components.items()
        },
        **msgspec.structs.asdict(said),
    )
    note = sign_document(document, (ROOT_KEY_NAME, root))
    write_durably(paths.trust / f"root-{number}.note", note.encode(), 0o600)
    if number == 1:
        write_durably(paths.pinned_key, f"{root.public.hex()}\n".encode(), 0o600)


def _render(
    template: str, deployment: str, strategies: Sequence[StrategyConfig], tokens: Mapping[str, TokenAccess]
) -> str:
    """`deployment.toml`; a JSON string is a TOML basic string."""
    places = dict(zip(("broker", "authority", "vault", "venue"), _free_ports(4), strict=True))
    text = template.format(deployment=json.dumps(deployment), **places)
    for label, token in tokens.items():
        text += f"\n[tokens.{label}]\nuri = {json.dumps(token.uri)}\n"
    for strategy in strategies:
        text += f"\n[[strategies]]\nname = {json.dumps(strategy.name)}\nmodule = {json.dumps(strategy.module)}\n"
        text += f"instruments = {json.dumps(strategy.instruments)}\n"
        if strategy.params:
            text += "\n[strategies.params]\n"
            text += "".join(f"{json.dumps(k)} = {json.dumps(v)}\n" for k, v in strategy.params.items())
    return text


def _free_ports(count: int) -> list[int]:
    """Ports that nothing listens on now."""
    found: list[int] = []
    while len(found) < count:
        port = entropy.choice(PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found


def _require_free(directory: Path) -> None:
    try:
        taken = any(directory.iterdir())
    except FileNotFoundError:
        return
    except OSError as exc:
        raise ConfigError("INIT_PATH", f"{directory} cannot be used: {exc.strerror}") from exc
    if taken:
        raise ConfigError("INIT_EXISTS", f"{directory} is not empty; choose another folder, or remove it yourself")
