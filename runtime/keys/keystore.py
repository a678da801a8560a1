"""The keystore: one encrypted file with every PIN, passphrase and key of a deployment.

The file (version 1), all lengths in bytes:

    magic 24 ‖ salt 16 ‖ check 16 ‖ nonce 12 ‖ ciphertext and tag ‖ checksum 32

- `magic` is the literal text `tallystick keystore v1` and two newlines; it fixes the parameters below.
- scrypt (RFC 7914; N = 65536, r = 8, p = 1) of master PIN and salt gives 48 bytes: key 32 ‖ check 16.
- The ciphertext is AES-256-GCM of a JSON object of text to text; everything before it is authenticated.
- `checksum` is the SHA-256 of all before it: it tells damage from a wrong PIN and proves nothing.

Rules of opening, in this order:

- The file must belong to its owner alone (no rights for group and others).
- Wrong magic, length or checksum: `Unverified`, naming the file.
- `check` differs from what the PIN gives: `ConfigError`, the PIN is wrong.
- GCM refuses, or the content is not a JSON object of text: `Unverified`, naming the file.

The file is not trusted: an attacker who controls it can at most make it unreadable, put back an older
version of it, or guess the PIN at 64 MiB and some 0.2 s of scrypt a guess.
"""

from __future__ import annotations

import getpass
import hashlib
import hmac
import os
import secrets as entropy
import signal
import socket
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, NoReturn

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from tallystick.infra.child import end_with_parent
from tallystick.runtime.durable import write_durably
from tallystick.schemas.errors import NOT_DECODED, ConfigError, Malformed, TallystickError, Unverified

MAGIC: Final = b"tallystick keystore v1\n\n"
_SALT, _CHECK, _NONCE, _TAG, _SUM = 16, 16, 12, 16, 32
_HEADER: Final = len(MAGIC) + _SALT + _CHECK + _NONCE
# Some hundred secrets of 64 characters; a larger file is not ours.
MAX_BYTES: Final = 1 << 20
# A PIN or a passphrase; longer input is a wrong file on the descriptor.
MAX_PIN: Final = 1024
MIN_MASTER_PIN: Final = 8


class Secret:
    """A text that shows itself only through `reveal()`: never in repr, str, format, logs or pickles."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    @classmethod
    def random(cls) -> Secret:
        """A new secret of 256 random bits, 43 characters of the base64url alphabet."""
        return cls(entropy.token_urlsafe(32))

    def reveal(self) -> str:
        """The text.  Hand it straight to what needs it; keep it in no variable."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(…)"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._value.encode(), other._value.encode())

    __hash__ = None  # type: ignore[assignment]  # a hash of a secret is something about the secret

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not pickled: use hand_over()")


class Keystore:
    """The opened keystore.  `secrets` is owned by the caller; `save()` makes changes durable."""

    def __init__(self, path: Path, secrets: dict[str, Secret], salt: bytes, derived: bytes) -> None:
        """For `create` and `open`."""
        self.path = path
        self.secrets = secrets
        self._salt = salt
        self._derived = derived

    @classmethod
    def create(cls, path: Path, master_pin: Secret, secrets: Mapping[str, Secret]) -> Keystore:
        """Write a new keystore.  Raises `ConfigError` if `path` exists or the PIN is too short."""
        check_master_pin(master_pin)
        if path.exists():
            raise ConfigError("KEYSTORE_EXISTS", f"{path} exists already; choose another place")
        salt = entropy.token_bytes(_SALT)
        store = cls(path, dict(secrets), salt, _derive(master_pin, salt))
        store.save()
        return store

    @classmethod
    def open(cls, path: Path, master_pin: Secret) -> Keystore:
        """Open a keystore.  Raises `ConfigError` (missing, readable by others, wrong PIN) and `Unverified`."""
        try:
            with path.open("rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                data = file.read(MAX_BYTES + 1)
        except OSError as exc:
            raise ConfigError(
                "KEYSTORE_MISSING", f"cannot read {path}: {exc.strerror}; `tallystick init` makes one"
            ) from exc
        if mode & 0o077:
            raise ConfigError("KEYSTORE_MODE", f"{path} has mode {mode & 0o777:04o}, expected 0600: chmod 600 {path}")
        if not data.startswith(MAGIC) or not _HEADER + _TAG + _SUM <= len(data) <= MAX_BYTES:
            raise Unverified("KEYSTORE_DAMAGED", f"{path} is not a tallystick keystore of version 1")
        body, checksum = data[:-_SUM], data[-_SUM:]
        if hashlib.sha256(body).digest() != checksum:
            raise Unverified("KEYSTORE_DAMAGED", f"{path} was changed: its checksum is wrong; restore it from a backup")
        header = body[:_HEADER]
        salt, rest = header[len(MAGIC) :][:_SALT], header[len(MAGIC) + _SALT :]
        derived = _derive(master_pin, salt)
        if not hmac.compare_digest(derived[32:], rest[:_CHECK]):
            raise ConfigError("KEYSTORE_PIN", f"wrong master PIN for {path}")
        try:
            plain = AESGCM(derived[:32]).decrypt(rest[_CHECK:], body[_HEADER:], header)
            values = msgspec.json.decode(plain, type=dict[str, str])
        except (InvalidTag, *NOT_DECODED) as exc:
            # The decoder's message could quote the plaintext: it stays out.
            raise Unverified("KEYSTORE_TAMPERED", f"{path} was changed: its content fails authentication") from (
                exc if isinstance(exc, InvalidTag) else None
            )
        return cls(path, {name: Secret(value) for name, value in values.items()}, salt, derived)

    def save(self) -> None:
        """Replace the file by the secrets as they are now: durable and whole, or not at all."""
        if not self._derived:
            raise TypeError("a part of a keystore is not saved: it would take the place of the whole")
        nonce = entropy.token_bytes(_NONCE)
        header = MAGIC + self._salt + self._derived[32:] + nonce
        plain = msgspec.json.encode({name: secret.reveal() for name, secret in sorted(self.secrets.items())})
        body = header + AESGCM(self._derived[:32]).encrypt(nonce, plain, header)
        write_durably(self.path, body + hashlib.sha256(body).digest(), 0o600)

    def change_pin(self, master_pin: Secret) -> None:
        """Have the keystore opened by another master PIN from the next `save` on.  Raises `ConfigError` for a short one."""
        check_master_pin(master_pin)
        self._salt = entropy.token_bytes(_SALT)
        self._derived = _derive(master_pin, self._salt)

    def __getitem__(self, name: str) -> Secret:
        """The secret `name`.  Raises `ConfigError` if there is none."""
        try:
            return self.secrets[name]
        except KeyError:
            raise ConfigError("KEYSTORE_NAME", f"{self.path} holds no secret named {name!r}") from None

    def __repr__(self) -> str:
        return f"Keystore({str(self.path)!r}, {len(self.secrets)} secrets)"


def check_master_pin(master_pin: Secret) -> None:
    """Raise `ConfigError` for a PIN that is too short to protect a keystore."""
    if len(master_pin.reveal()) < MIN_MASTER_PIN:
        raise ConfigError("PIN_INPUT", f"the master PIN must have at least {MIN_MASTER_PIN} characters")


def _derive(master_pin: Secret, salt: bytes) -> bytes:
    return Scrypt(salt=salt, length=32 + _CHECK, n=1 << 16, r=8, p=1).derive(master_pin.reveal().encode())


def read_pin(prompt: str, fd: int | None = None) -> Secret:
    """A PIN typed at a prompt, or the first line of an open descriptor (which is closed).  Raises `ConfigError`."""
    return read_pins((prompt,), fd)[0]


def read_pins(prompts: Sequence[str], fd: int | None = None) -> tuple[Secret, ...]:
    """PINs typed at prompts, or the first lines of an open descriptor (which is closed).  Raises `ConfigError`."""
    if fd is None:
        try:
            values = [getpass.getpass(prompt) for prompt in prompts]
        except EOFError as exc:
            raise ConfigError("PIN_INPUT", "no terminal to type the PIN at; pass a descriptor with --pin-fd N") from exc
    else:
        try:
            with os.fdopen(fd, "rb") as file:
                lines = [file.readline(MAX_PIN + 1) for _ in prompts]
            values = [line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8") for line in lines]
        except OSError as exc:
            raise ConfigError("PIN_INPUT", f"cannot read the PIN from descriptor {fd}: {exc.strerror}") from exc
        except UnicodeDecodeError:
            raise ConfigError("PIN_INPUT", f"the PIN on descriptor {fd} is not UTF-8") from None
    for value, prompt in zip(values, prompts, strict=True):
        if not 0 < len(value.encode()) <= MAX_PIN:
            asked = prompt.rstrip(": ")
            raise ConfigError("PIN_INPUT", f"a PIN has 1 to {MAX_PIN} bytes, got {len(value.encode())} ({asked})")
    return tuple(Secret(value) for value in values)


def open_part(
    path: Path,
    pin: Callable[[], Secret],
    names: Iterable[str],
    work: Callable[[Keystore], object] = lambda _: None,
    optional: Iterable[str] = (),
) -> Keystore:
    """The secrets `names` of the keystore at `path` alone, and of `optional` those that are there; it cannot be saved.

    A child asks for the PIN, opens the keystore, does `work` with it, hands these over and ends: what it read besides was
    never in our memory, where freed text lies about for as long as we live.  Called while there is one thread.  Raises
    what `pin`, `Keystore.open` and `work` raise of our own errors.
    """
    wanted, possible = tuple(names), tuple(optional)
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        try:
            end_with_parent(signal.SIGTERM)
            ours.close()
            theirs.sendall(msgspec.json.encode(_opened(path, pin, wanted, possible, work)))
        except Exception:  # noqa: BLE001 - whatever it is
            # A defect: nobody above us would tell it.
            traceback.print_exc()
        finally:
            # Nothing of the parent's is run to its end here.
            os._exit(0)
    theirs.close()
    try:
        with ours, ours.makefile("rb") as file:
            data = file.read()
    except BaseException:
        # We are told to end while it asks: it gives the terminal back as it was.
        os.kill(child, signal.SIGTERM)
        raise
    finally:
        os.waitpid(child, 0)
    try:
        values, code, text, kind = msgspec.json.decode(data, type=tuple[dict[str, str], str, str, str])
    except NOT_DECODED:
        raise ConfigError(
            "KEYSTORE_MISSING", f"{path}: the process that opens it ended without a word; try again"
        ) from None
    if code:
        raise {error.__name__: error for error in (Unverified, Malformed)}.get(kind, ConfigError)(code, text)
    return Keystore(path, {name: Secret(value) for name, value in values.items()}, b"", b"")


def _opened(
    path: Path,
    pin: Callable[[], Secret],
    names: tuple[str, ...],
    optional: tuple[str, ...],
    work: Callable[[Keystore], object],
) -> tuple[dict[str, str], str, str, str]:
    """Values; or code, text and class of what is wrong."""
    try:
        store = Keystore.open(path, pin())
        work(store)
        found = (*names, *(name for name in optional if name in store.secrets))
        return {name: store[name].reveal() for name in found}, "", "", ""
    except TallystickError as exc:
        return {}, exc.code, exc.text, type(exc).__name__
    except OSError as exc:
        return {}, "SYSTEM", f"{exc.filename or path}: {exc.strerror or type(exc).__name__}", ""


def hand_over(secrets: Mapping[str, Secret]) -> int:
    """A socket from which one child takes the secrets: no file, environment or command line.

    Nor can others of this user open it below `/proc`, as they can memory files and pipes.
    Pass it with `subprocess.Popen(..., pass_fds=[fd])` and close it after the start.
    """
    data = msgspec.json.encode({name: secret.reveal() for name, secret in secrets.items()})
    ours, theirs = socket.socketpair()
    with ours, theirs:
        # Some kilobytes, for which every socket has room: more would raise, not wait.
        ours.setblocking(False)
        ours.sendall(data)
        return theirs.detach()


def take_over(fd: int) -> dict[str, Secret]:
    """The secrets behind an inherited descriptor (a socket, a pipe, a file), which is read to its end and closed.

    Raises `ConfigError` for what `hand_over` cannot have made.
    """
    try:
        with os.fdopen(fd, "rb") as file:
            data = file.read(MAX_BYTES)
    except OSError as exc:
        raise ConfigError("SECRETS_FD", f"cannot take secrets from descriptor {fd}: {exc.strerror}") from exc
    try:
        values = msgspec.json.decode(data, type=dict[str, str])
    except NOT_DECODED:
        raise ConfigError(
            "SECRETS_FD", f"descriptor {fd} holds no JSON object of text ({len(data)} bytes); was it taken before?"
        ) from None
    return {name: Secret(value) for name, value in values.items()}
