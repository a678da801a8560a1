"""`tallystick init`: the key ceremony, which makes a deployment folder with every key, certificate and document.

- Every private key but those of TLS is born in a token; TLS keys are stored encrypted.  PINs and passphrases are
  random and live in the keystore alone, under the master PIN.
- The operator root signs trust root 1 and the broker's operator token here, and is not needed again until
  something about keys, components, instruments or caps changes.
- Everything is built in a hidden folder beside DIR and renamed at the end: DIR is there whole, or not at all.
- A DIR that holds anything is refused.
"""

from __future__ import annotations

import importlib.resources
import json
import os
import secrets as entropy
import shutil
from collections.abc import Callable, Mapping, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final

import msgspec

from tallystick.infra.lockfile import Lockfile
from tallystick.infra.nats.claims import BusKeys, ComponentKeys, Validity, operator_token
from tallystick.runtime.deployment import certificates, paper_venue
from tallystick.runtime.deployment import folder as layout
from tallystick.runtime.deployment.config import StrategyConfig, parse_config
from tallystick.runtime.deployment.folder import Deployment
from tallystick.runtime.deployment.methods import Made
from tallystick.runtime.deployment.proof import api_key_file
from tallystick.runtime.deployment.template import DEFAULT_STRATEGIES, DEFAULT_TEMPLATE, ROTATION_TEMPLATE, render
from tallystick.runtime.deployment.trust_root import write_trust_root
from tallystick.runtime.durable import sync, sync_tree, write_durably
from tallystick.runtime.keys.hsm import Token, create_token
from tallystick.runtime.keys.key_info import dated
from tallystick.runtime.keys.keystore import Keystore, Secret, check_master_pin
from tallystick.schemas.bounds import SECOND
from tallystick.schemas.errors import ConfigError
from tallystick.schemas.subjects import check_name

# The issuing CA that a deployment starts with.
FIRST: Final = 1


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
        text = render(template, deployment, strategies, {label: token.uri for label, token in tokens.items()})
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
        traders = [name for name in paper_venue.API_PERMISSIONS if name in self.bus.components]
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
            named = {name: (paper_venue.new_api_key(), public) for name, public in api_keys.items()}
            self.secrets |= {layout.api_key_name(name): Secret(key) for name, (key, _) in named.items()}
            document = paper_venue.paper_exchange(self.config, named)
            self._write(paths.paper_exchange, json.dumps(document, indent=2).encode())
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

    def _copy_policy(self) -> None:
        source = importlib.resources.files("tallystick.infra") / "policies"
        files: list[Traversable] = [f for f in source.iterdir() if f.name.endswith((".cedar", ".cedarschema"))]
        if not files:
            raise ConfigError("INIT_POLICY", f"no policies in {source}: the installation is incomplete")
        for file in files:
            self._write(self.paths.policy / file.name, file.read_bytes())

    def _write(self, path: Path, data: bytes) -> None:
        write_durably(path, data, 0o600)


def _require_free(directory: Path) -> None:
    try:
        taken = any(directory.iterdir())
    except FileNotFoundError:
        return
    except OSError as exc:
        raise ConfigError("INIT_PATH", f"{directory} cannot be used: {exc.strerror}") from exc
    if taken:
        raise ConfigError("INIT_EXISTS", f"{directory} is not empty; choose another folder, or remove it yourself")
