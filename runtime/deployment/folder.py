"""The deployment folder: where everything lies, which keys and secrets there are, and who gets which.

The folder is trusted with availability and configuration: an attacker who can write to it can change the code and the
parameters of strategies and where prices come from, but can forge no key, no trust root, no cap and no limit, and opens
no token or keystore without the master PIN.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from tallystick.infra.nats import topology
from tallystick.infra.nats.claims import BusKeys
from tallystick.runtime.deployment.config import (
    ALL_TOKENS,
    TOKENS,
    Config,
    ObserverConfig,
    StrategyConfig,
    parse_config,
)
from tallystick.runtime.keys.uri import Place, parse_token_uri
from tallystick.schemas.errors import NOT_DECODED, ConfigError, Malformed, Unverified
from tallystick.schemas.nats_jwt import encode_key
from tallystick.schemas.trust import TrustRoot, open_trust_roots

CONFIG_NAME: Final = "deployment.toml"
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
ISSUING_CA: Final = b"issuing-ca/"
# … tokens custody and portfolio (an API key each at the venue), and audit
KEY_VENUE: Final = b"venue"
KEY_ROTATED: Final = b"api-"
KEY_CHECKPOINT: Final = b"checkpoint"
# … token issuer, whose key signs the tokens of strategies, and execution's own, by which it proves itself
ISSUER: Final = "issuer"
KEY_ISSUER: Final = b"issuer"
HARDWARE: Final = "execution"
KEY_IDENTITY: Final = b"identity"

# Which of the tokens a component opens.
_OWN_TOKENS: Final = {
    "authority": ("roles", "signing"),
    "audit": ("audit",),
    "execution": (HARDWARE,),
}
# Whose process has a user of its own where that can be (`apart`), and so a folder of its own below `run`.
APART: Final = ("custody",)
# Whose token's PIN and API key id at the venue lie in the vault; the keymaster's is the master account's.
LEASED: Final = ("custody", "portfolio", "keymaster")
# What such a component is handed to get it, where it logs in by a secret id: a wrapping token.
SECRET_ID: Final = "vault.secret_id"  # noqa: S105 - its name
# A process whose component the operator revoked ends with this.
EXIT_REVOKED: Final = 3
# Certificates besides those of the components: the broker's, the vault's and the operator's own.
BROKER: Final = "nats"
VAULT: Final = "vault"
OPERATOR: Final = "operator"
SERVERS: Final = (BROKER, VAULT, "authority", "paper-exchange")

PIN_STORE_KEY: Final = "nats.store_key"
PIN_ARCHIVE_KEY: Final = "audit.archive_key"
# sockaddr_un holds 108 bytes with the final zero; `/` and a socket's name (`custody/custody.sock`) take up to 24 of them.
MAX_RUN_PATH: Final = 108 - 1 - 24


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
    """The name, in vault and keystore, of the venue's API key id that `custody`, `portfolio` or `keymaster` uses."""
    return f"venue.{component}.api_key"


def key_id_name(component: str) -> str:
    """The name, in the vault, of the CKA_ID of the key in its token that belongs to it; not there: `KEY_VENUE`."""
    return f"venue.{component}.key_id"


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

    @property
    def vault(self) -> Path:
        """The embedded vault's storage and audit file."""
        return self.directory / "vault"

    @property
    def vault_port(self) -> Path:
        """The port that the embedded vault has taken, written at each start."""
        return self.run / "vault.port"

    @property
    def vault_ca(self) -> Path:
        """What vouches for the vault: the issuing CA for the embedded one, what `deployment.toml` names for another."""
        named = self.config.vault.ca
        return self.directory / named if named else self.issuing_ca

    def vault_address(self) -> str:
        """Where the vault is.  Raises `ConfigError` for an embedded one that takes any port, and was never started."""
        if self.config.vault.address:
            return self.config.vault.address
        try:
            port = self.config.vault.port or int(self.vault_port.read_text("ascii"))
        except (OSError, ValueError) as exc:
            raise ConfigError("VAULT_ADDRESS", f"{self.vault_port}: no port; `tallystick up` starts the vault") from exc
        host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
        return f"https://{host}:{port}"

    def identity(self, component: str) -> Path:
        """The certificate and the encrypted key of a component, of the broker (`nats`) or of the operator."""
        return self.pki / f"{component}.pem"

    @property
    def keystore(self) -> Path:
        """All PINs and passphrases, under the master PIN."""
        return self.directory / "keystore"

    @property
    def tokens(self) -> Path:
        """Where SoftHSM keeps the tokens, each in a folder of its own."""
        return self.directory / "hsm"

    @property
    def token_labels(self) -> tuple[str, ...]:
        """The tokens that this deployment has."""
        return TOKENS if self.config.rotation is None else ALL_TOKENS

    def token(self, label: str) -> Place:
        """The token `label`, one of `TOKENS`: SoftHSM's, or the one that `deployment.toml` names."""
        named = self.config.tokens.get(label)
        if named is None:
            return self.tokens / label
        return msgspec.structs.replace(parse_token_uri(named.uri), env=named.env)

    def key_in_use(self, label: str, key_id: bytes) -> bool:
        """Whether the deployment runs with a key of a token, or needs it to explain its certificates."""
        own = {
            "operator": (KEY_OPERATOR_ROOT, KEY_PERSON, KEY_CA),
            "signing": (KEY_OPERATOR, KEY_CORE_ACCOUNT, KEY_ACTIVATION, KEY_ADMIN, KEY_SYSTEM_ACCOUNT),
            "roles": (KEY_SYSTEM_ROLE,),
            "audit": (KEY_CHECKPOINT,),
            ISSUER: (KEY_ISSUER,),
            HARDWARE: (KEY_IDENTITY,),
        }.get(label, (KEY_VENUE,))
        # What rotation made goes by rotation.
        if label in LEASED and key_id.startswith(KEY_ROTATED):
            return True
        of_component = {"signing": account_key_id, "roles": role_key_id}.get(label)
        return (
            key_id in own
            or (of_component is not None and key_id in map(of_component, self.bus().components))
            or (label == "roles" and key_id.startswith(ISSUING_CA))
        )

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

    def seat(self, component: str) -> Path:
        """Where a component's process has its socket, its pid and what it says of itself."""
        return self.run / component if component in APART else self.run

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
        observers = tuple(o.name for o in self.config.observers)
        return topology.deployed(self.name, self.strategies, observers, rotates=self.config.rotation is not None)

    def variables(self, component: str) -> tuple[str, ...]:
        """The names of the environment variables that the deployment gives to a component besides what all get."""
        own = next((made.env for made in self.user_code if made.component == component), ())
        labels = _OWN_TOKENS.get(component, ()) + ((component,) if component in LEASED else ())
        tokens = [self.config.tokens[t].env for t in labels if t in self.config.tokens]
        return (*own, *(name for names in tokens for name in names))

    def secret_names(self, component: str) -> tuple[str, ...]:
        """The keystore's names of what a component gets, and nothing else."""
        names = [passphrase_name(component)]
        names += [pin_name(token) for token in _OWN_TOKENS.get(component, ())]
        if component == "audit":
            names.append(PIN_ARCHIVE_KEY)
        return tuple(names)

    def supervision_names(self) -> tuple[str, ...]:
        """The keystore's names of what running everything takes: to start components and broker, to renew certificates.

        The operator's token, and the PINs of the security officers, stay out.
        """
        components = self.bus().components
        handed = [name for component in components for name in self.secret_names(component)]
        own = (
            pin_name("roles"),
            pin_name("signing"),
            pin_name(ISSUER),
            passphrase_name(VAULT),
            passphrase_name(BROKER),
            passphrase_name(OPERATOR),
            PIN_STORE_KEY,
        )
        return tuple(dict.fromkeys((*handed, *own)))

    def leased_names(self, component: str) -> tuple[str, ...]:
        """The names of what a component gets from the vault, and nothing else."""
        return (pin_name(component), api_key_name(component)) if component in LEASED else ()

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
