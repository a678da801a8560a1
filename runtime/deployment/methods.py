"""Which method each component proves itself by, as the next trust root will say: from the topology, the files, and the keys.

What a deployment makes itself: a token `issuer`, whose key signs the tokens of strategies that `tallystick up` starts; a
token `execution`; the first API key of market data.  `deployment.toml` may name others in place of the first two.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from tallystick.infra.nats import topology
from tallystick.runtime.deployment.config import StrategyTokens
from tallystick.runtime.deployment.folder import CONFIG_NAME, Deployment
from tallystick.schemas.errors import NOT_DECODED, ConfigError, Malformed
from tallystick.schemas.methods import CERTIFICATE, ApiKey, HardwareToken, Jwk, Method, ServiceAccount
from tallystick.schemas.trust import TrustRoot

# A set of keys, or a certificate authority.
MAX_FILE: Final = 65_536


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """Public halves of what was made: the raw Ed25519 keys of the tokens (empty: none), hashes of first API keys."""

    issuer: bytes = b""
    execution: bytes = b""
    api_keys: Mapping[str, str] = {}


def key_id(public: bytes) -> str:
    """The `kid` of our own issuer's key."""
    return hashlib.sha256(public).hexdigest()[:16]


def own_account(deployment: str, component: str, public: bytes) -> ServiceAccount:
    """What a strategy's token says that `tallystick up` makes, with the raw key `public`."""
    x = base64.urlsafe_b64encode(public).rstrip(b"=").decode()
    return ServiceAccount(
        issuer=f"urn:tallystick:{deployment}:up",
        audience=f"urn:tallystick:{deployment}:authority",
        subject=f"spiffe://{deployment}/{component}",
        single=True,
        keys=(Jwk(kty="OKP", crv="Ed25519", alg="EdDSA", kid=key_id(public), x=x),),
    )


def method_of(deployment: Deployment, component: topology.Component, made: Made) -> Method:
    """How `component` proves itself.  Raises `ConfigError` for files that cannot be read or hold nothing usable."""
    identity = deployment.config.identity
    try:
        match component.method:
            case "service-account":
                if identity.strategies is None:
                    return own_account(deployment.name, component.name, made.issuer)
                return _outside(deployment, identity.strategies, component.strategy)
            case "hardware-token":
                if identity.execution is None:
                    return HardwareToken(algorithm="ed25519", key=made.execution.hex())
                return HardwareToken(algorithm=identity.execution.algorithm, key=identity.execution.key)
            case "api-key":
                return ApiKey(first=made.api_keys[component.name])
            case _:
                return CERTIFICATE
    except Malformed as exc:
        raise ConfigError("IDENTITY_CONFIG", f"{component.name}: {exc.text}") from exc


def require_signed_methods(deployment: Deployment, root: TrustRoot) -> None:
    """Raise `ConfigError` unless `[identity]` says what the operator signed in `root`; it names who differs."""
    identity = deployment.config.identity
    differs = []
    for name, component in deployment.bus().components.items():
        signed = root.component(name).method
        if isinstance(signed, ServiceAccount) and (signed.single or identity.strategies is None):
            same = signed.single and identity.strategies is None
        elif isinstance(signed, ServiceAccount) or (isinstance(signed, HardwareToken) and identity.execution):
            same = signed == method_of(deployment, component, Made())
        else:
            same = True
        if not same:
            differs.append(name)
    if differs:
        raise ConfigError(
            "TERMS_UNSIGNED",
            f"{deployment.directory / CONFIG_NAME}: identity of {', '.join(differs)} differs from what the operator signed "
            f"in trust root {root.number}: take the change back, or have it signed with `tallystick admit "
            f"{deployment.directory}`",
        )


class _Set(msgspec.Struct, frozen=True):
    keys: tuple[Jwk, ...]


def _outside(deployment: Deployment, said: StrategyTokens, strategy: str) -> ServiceAccount:
    keys: tuple[Jwk, ...] = ()
    ca = ""
    if said.jwks:
        path = deployment.directory / said.jwks
        try:
            keys = msgspec.json.decode(_read(path), type=_Set).keys
        except NOT_DECODED as exc:
            raise ConfigError("IDENTITY_CONFIG", f"{path} is no set of public keys: {exc}") from exc
    else:
        ca = _read(deployment.directory / said.ca)
    return ServiceAccount(
        issuer=said.issuer,
        audience=said.audience,
        subject=said.subject.replace("{strategy}", strategy),
        single=False,
        keys=keys,
        url=said.url,
        ca=ca,
    )


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
        if len(data) > MAX_FILE:
            raise ConfigError("IDENTITY_CONFIG", f"{path} has more than {MAX_FILE} bytes")
        return data.decode("utf-8")
    except OSError as exc:
        raise ConfigError("IDENTITY_CONFIG", f"cannot read {path}: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError("IDENTITY_CONFIG", f"{path} is no text") from exc
