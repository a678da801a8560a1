"""Tokens for strategies, of the deployment's own issuer: whoever starts a strategy says so to the authority.

- The key lies in token `issuer`, which a process of its own has open (`token_process`); its public half stands in the
  trust root.  No strategy gets the PIN.
- A token names its strategy, and the certificate that the strategy shows now (RFC 8705): for nobody else it counts.  It
  lives `LIFE_S` and opens one session.
- It lies in `DIR/run/<strategy>.token`, mode 0600, replaced whole, as a kubelet's does.  The strategy takes it away when
  it shows it; a new one follows at the next look (`refresh`), and also when the certificate changes or half its life is over.

Whoever holds the opened keystore can make tokens for every strategy, and has their certificates' passphrases as well.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import secrets as entropy
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import msgspec
from cryptography.hazmat.primitives.serialization import Encoding
from jwt import PyJWS
from jwt.algorithms import Algorithm

from tallystick.runtime.deployment import folder as layout
from tallystick.runtime.deployment.folder import Deployment
from tallystick.runtime.deployment.methods import key_id
from tallystick.runtime.deployment.proof import token_file
from tallystick.runtime.durable import write_durably
from tallystick.runtime.keys.identity import load_certificate
from tallystick.runtime.keys.keystore import Keystore
from tallystick.runtime.keys.token_process import ProcessSigner, TokenProcess
from tallystick.schemas.bounds import SECOND
from tallystick.schemas.errors import ConfigError
from tallystick.schemas.methods import ServiceAccount

LIFE_S: Final = 300
LOOK_S: Final = 0.2
_READY: Final = b"ready"


class _InToken(Algorithm):
    """EdDSA by a key that stays in its token (RFC 8037), for pyjwt, which never sees it."""

    def prepare_key(self, key: Any) -> Any:
        return key

    def sign(self, msg: bytes, key: Any) -> bytes:
        return bytes(key.sign(msg))

    def verify(self, msg: bytes, key: Any, sig: bytes) -> bool:
        raise NotImplementedError("the authority verifies")

    @staticmethod
    def to_jwk(key_obj: Any, as_dict: bool = False) -> Any:
        raise NotImplementedError("the key does not leave its token")

    @staticmethod
    def from_jwk(jwk: Any) -> Any:
        raise NotImplementedError("the key does not leave its token")


def mint(method: ServiceAccount, certificate: bytes, signer: ProcessSigner, now: int, *, life_s: int = LIFE_S) -> str:
    """A token as `method` demands, for who shows the certificate of this SHA-256, from `now` (Unix ns) on."""
    jws = PyJWS(algorithms=[])
    jws.register_algorithm("EdDSA", _InToken())
    issued = now // SECOND
    claims = {
        "iss": method.issuer,
        "aud": method.audience,
        "sub": method.subject,
        "iat": issued,
        "nbf": issued,
        "exp": issued + life_s,
        "jti": entropy.token_hex(16),
        "cnf": {"x5t#S256": base64.urlsafe_b64encode(certificate).rstrip(b"=").decode()},
    }
    key: Any = signer
    return jws.encode(msgspec.json.encode(claims), key, algorithm="EdDSA", headers={"kid": key_id(signer.public)})


class ServiceAccounts:
    """The issuer, with its token open; a context manager.  Threads take turns."""

    def __init__(
        self, deployment: Deployment, keystore: Keystore, names: Iterable[str], clock: Callable[[], int]
    ) -> None:
        """For the strategies among `names` (identity names) that show our own tokens.

        Raises `ConfigError` where the token does not open.
        """
        wanted = frozenset(names)
        self._deployment = deployment
        self._clock = clock
        self._methods = {
            name: record.method
            for name, record in deployment.load_trust()[-1].components.items()
            if name in wanted and isinstance(record.method, ServiceAccount) and record.method.single
        }
        self._turn = threading.RLock()
        self._made: dict[str, tuple[bytes, int]] = {}
        self._token: TokenProcess | None = None
        if self._methods:
            pin = keystore[layout.pin_name(layout.ISSUER)]
            self._token = TokenProcess(deployment.token(layout.ISSUER), layout.ISSUER, pin)
            self._signer = self._token.signer(layout.KEY_ISSUER)

    @property
    def names(self) -> tuple[str, ...]:
        """The strategies that it serves."""
        return tuple(self._methods)

    def issue(self, name: str) -> None:
        """Put a token for strategy `name` (its identity name) where it finds it; nothing for who shows none of ours.

        Raises `ConfigError`.
        """
        with self._turn:
            self._issue(name)

    def _issue(self, name: str) -> None:
        method = self._methods.get(name)
        if method is None:
            return
        if self._token is None:
            raise ConfigError("TOKEN_FILE", f"no token for {name}: the issuer's token is closed")
        certificate = self._certificate(name)
        now = self._clock()
        token = mint(method, certificate, self._signer, now)
        path = token_file(self._deployment, name)
        try:
            write_durably(path, token.encode(), 0o600)
        except OSError as exc:
            raise ConfigError("TOKEN_FILE", f"cannot write {path}: {exc.strerror}") from exc
        self._made[name] = (self._state(name), now + LIFE_S * SECOND // 2)

    def refresh(self, names: Iterable[str]) -> None:
        """Issue again where that is due.  Raises `ConfigError`."""
        for name in names:
            if name not in self._methods:
                continue
            with self._turn:
                state, due = self._made.get(name, (b"", 0))
                gone = not token_file(self._deployment, name).exists()
                if gone or self._clock() >= due or self._state(name) != state:
                    self._issue(name)

    def _certificate(self, name: str) -> bytes:
        certificate = load_certificate(self._deployment.identity(name))
        return hashlib.sha256(certificate.public_bytes(Encoding.DER)).digest()

    def _state(self, name: str) -> bytes:
        """What tells another certificate's file from this one, without reading it."""
        try:
            its = self._deployment.identity(name).stat()
        except OSError:
            return b""
        return f"{its.st_ino} {its.st_mtime_ns}".encode()

    def keep(self, ended: threading.Event) -> None:
        """Issue, and look, until `ended` is set.  Raises `ConfigError`."""
        self.refresh(self._methods)
        while not ended.wait(LOOK_S):
            self.refresh(self._methods)

    def close(self) -> None:
        """Close the token, and take away what nobody will show any more."""
        with self._turn:
            for name in self._methods:
                token_file(self._deployment, name).unlink(missing_ok=True)
            if self._token is not None:
                self._token.close()
                self._token = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


@contextlib.contextmanager
def serving(deployment: Deployment, keystore: Keystore, names: Iterable[str]) -> Iterator[None]:
    """A thread keeps tokens ready for `names` as long as the block lasts, for who holds the keystore.  Raises `ConfigError`."""
    ended = threading.Event()
    with ServiceAccounts(deployment, keystore, names, time.time_ns) as accounts, ThreadPoolExecutor(1) as pool:
        kept = pool.submit(accounts.keep, ended)
        try:
            yield
        finally:
            ended.set()
            kept.result()


def serve_apart(deployment: Deployment, keystore: Keystore, names: Iterable[str], ended: int) -> None:
    """Start a process that keeps tokens ready for `names` until the other end of the pipe `ended` is closed.

    For who starts one component, whose process must not have the issuer's PIN.  Called while there is one thread, by a process
    that ends soon; the first tokens are there when it returns.  Raises `ConfigError` where there is nothing to sign with.
    """
    heard, told = os.pipe()
    if os.fork():
        os.close(told)
        with os.fdopen(heard, "rb") as file:
            said = file.read()
        if said != _READY:
            raise ConfigError("TOKEN_FILE", said.decode() or "the process that makes tokens has ended")
        return
    code = 1
    try:
        _serve(deployment, keystore, names, ended, told)
        code = 0
    except Exception as exc:  # noqa: BLE001 - a process of its own, whose end says it
        with contextlib.suppress(OSError):
            os.write(told, str(exc).encode())
        sys.stderr.write(f"tallystick: {', '.join(names)}: no more tokens: {exc}\n")
    finally:
        os._exit(code)


def _serve(deployment: Deployment, keystore: Keystore, names: Iterable[str], ended: int, told: int) -> None:
    # What was inherited keeps others waiting for an end.
    for fd in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
        if fd > 2 and fd not in (ended, told):
            with contextlib.suppress(OSError):
                os.close(fd)
    over = threading.Event()

    def wait() -> None:
        os.read(ended, 1)
        over.set()

    with ServiceAccounts(deployment, keystore, names, time.time_ns) as accounts:
        accounts.refresh(accounts.names)
        os.write(told, _READY)
        os.close(told)
        if accounts.names:
            threading.Thread(target=wait, daemon=True).start()
            accounts.keep(over)
