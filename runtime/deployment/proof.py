"""How a component of this deployment proves itself besides its certificate: what the trust root names, found where it lies.

- A service account's token is read from a file, as a kubelet writes it, at each request.  One of our own issuer is taken
  away by whoever shows it: another one follows (`service_accounts`).
- A hardware token is opened for each signature, and closed again: the key is used while it is needed, and a token that
  is pulled out serves nobody.
- An API key lies in the component's own state, encrypted (`runtime.keys.api_key`).
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tallystick.runtime.bus.enrolment import Proof
from tallystick.runtime.deployment import folder as layout
from tallystick.runtime.keys.api_key import ApiKeyFile
from tallystick.runtime.keys.uri import Place
from tallystick.schemas.bounds import SECOND
from tallystick.schemas.enrolment import (
    MAX_TOKEN,
    ApiKeyEvidence,
    Asked,
    HardwareEvidence,
    TokenEvidence,
    challenge_bytes,
)
from tallystick.schemas.errors import NOT_DECODED, ConfigError, CouldNotVerify
from tallystick.schemas.methods import ApiKey, HardwareToken, Method, ServiceAccount

if TYPE_CHECKING:
    from tallystick.runtime.deployment.folder import Deployment
    from tallystick.runtime.keys.keystore import Secret

# So long a component waits for a token that is due: its issuer looks five times a second.
TOKEN_S: Final = 4.0
LOOK_S: Final = 0.05
# What is left of a token's life must outlast the request.
SPARE_S: Final = 5


class _Claims(msgspec.Struct, frozen=True):
    exp: int
    cnf: dict[str, Any] | None = None


class TokenFile:
    """The token in `path`; `single`: our own issuer's, for one session and one certificate."""

    def __init__(self, path: Path, clock: Callable[[], int], *, single: bool) -> None:
        self._path = path
        self._clock = clock
        self._single = single

    async def show(self, asked: Asked, challenge: Callable[[], Awaitable[bytes]]) -> TokenEvidence:
        """A token that counts now, under this certificate.  Raises `CouldNotVerify` where none comes."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + TOKEN_S
        why = ""
        while loop.time() < ends:
            try:
                token = self._take(asked)
            except (OSError, ValueError, *NOT_DECODED) as exc:
                why = type(exc).__name__
            else:
                if token:
                    return TokenEvidence(token)
                why = "it is over, or for another certificate"
            await asyncio.sleep(LOOK_S)
        raise CouldNotVerify("TOKEN_FILE", f"no token of {asked.component} in {self._path}: {why}")

    def _take(self, asked: Asked) -> str:
        with self._path.open("rb") as file:
            token = file.read(MAX_TOKEN + 2).decode("ascii").strip()
        # It is the authority that verifies it; here it is only seen whether it is worth showing.
        part = token.split(".")[1] if token.count(".") == 2 else ""
        claims = msgspec.json.decode(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)), type=_Claims)
        bound = base64.urlsafe_b64encode(asked.certificate).rstrip(b"=").decode()
        if claims.exp <= self._clock() // SECOND + SPARE_S or (
            self._single and (claims.cnf or {}).get("x5t#S256") != bound
        ):
            return ""
        if self._single:
            self._path.unlink()
        return token

    async def accepted(self) -> None:
        """Nothing is kept."""


class TokenChallenge:
    """A key in the PKCS#11 token `label` at `place`."""

    def __init__(self, place: Place, label: str, pin: Secret, method: HardwareToken) -> None:
        self._place = place
        self._label = label
        self._pin = pin
        self._method = method

    async def show(self, asked: Asked, challenge: Callable[[], Awaitable[bytes]]) -> HardwareEvidence:
        """The token's signature under a new challenge.  Raises `ConfigError` for a token that does not sign."""
        given = await challenge()
        signature = await asyncio.to_thread(self._sign, challenge_bytes(asked, given))
        return HardwareEvidence(given.hex(), signature.hex())

    def _sign(self, data: bytes) -> bytes:
        from tallystick.runtime.keys.hsm import Token

        with Token.open(self._place, self._label, self._pin) as token:
            if self._method.algorithm == "ed25519":
                return token.signer(layout.KEY_IDENTITY).sign(data)
            return token.p256_signer(layout.KEY_IDENTITY).sign(data)

    async def accepted(self) -> None:
        """Nothing is kept."""


class NextApiKey:
    """A key in the component's own file, replaced by the one that follows."""

    def __init__(self, file: ApiKeyFile) -> None:
        self._file = file
        self._shown = ""

    async def show(self, asked: Asked, challenge: Callable[[], Awaitable[bytes]]) -> ApiKeyEvidence:
        """The present key, and the hash of the next, which is on the disk.  Raises `ConfigError`."""
        key, follows = await asyncio.to_thread(self._file.show)
        self._shown = key
        return ApiKeyEvidence(key, follows)

    async def accepted(self) -> None:
        """The next one is the present one.  Raises `ConfigError`."""
        await asyncio.to_thread(self._file.advance, self._shown)


def api_key_file(deployment: Deployment, component: str, passphrase: Secret) -> ApiKeyFile:
    """Where `component` keeps its API key."""
    return ApiKeyFile(deployment.state(component) / "api-key", deployment.name, component, passphrase)


def token_file(deployment: Deployment, strategy: str) -> Path:
    """Where a strategy (its identity name) finds its token."""
    outside = deployment.config.identity.strategies
    if outside is None:
        return deployment.run / f"{strategy}.token"
    return deployment.directory / outside.token_file.replace("{strategy}", strategy.removeprefix("strategy-"))


def proof_of(
    deployment: Deployment, method: Method, component: str, secrets: Mapping[str, Secret], clock: Callable[[], int]
) -> Proof | None:
    """How `component`, which was handed `secrets`, proves itself by `method`.  Raises `ConfigError`."""

    def secret(name: str) -> Secret:
        if name not in secrets:
            raise ConfigError(
                "SECRETS", f"{component} needs the secret {name}: is it in the keystore, and handed over?"
            )
        return secrets[name]

    match method:
        case ServiceAccount():
            return TokenFile(token_file(deployment, component), clock, single=method.single)
        case HardwareToken():
            pin = secret(layout.pin_name(layout.HARDWARE))
            return TokenChallenge(deployment.token(layout.HARDWARE), layout.HARDWARE, pin, method)
        case ApiKey():
            return NextApiKey(api_key_file(deployment, component, secret(layout.passphrase_name(component))))
        case _:
            return None
