"""A token open in a process of its own, for whoever needs keys of a second token at the same time.

A process has at most one token open (`hsm`).  `TokenProcess` starts a child that opens another, hands it the
PIN through memory, and asks it for signatures over a socket pair that nobody else can reach.

    request  = msgpack [op, key id, data]      op: signer (gives the raw public key), sign (gives the signature),
                                               p256 (the public key as DER), sign_p256
    reply    = msgpack [code, text, value]     code "" with a value, or an error's code and text

The child ends when its parent does: the socket pair closes.  It signs whatever its parent asks for; the boundary
is the parent's process, not this socket.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tallystick.infra.child import harden
from tallystick.runtime.environment import environment
from tallystick.runtime.keys.hsm import Token
from tallystick.runtime.keys.keystore import Secret, hand_over, take_over
from tallystick.runtime.keys.signers import EcdsaSigner, HsmSigner
from tallystick.runtime.keys.uri import SCHEME, Place, TokenUri, parse_token_uri
from tallystick.schemas.errors import NOT_DECODED, ConfigError, Malformed, TallystickError

START_TIMEOUT_S: Final = 20.0
# A signature takes a fraction of a millisecond in SoftHSM and some hundred in slow smart cards.
SIGN_TIMEOUT_S: Final = 5.0
MAX_FRAME: Final = 1 << 20


class _Request(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    op: Literal["signer", "sign", "p256", "sign_p256"]
    key_id: bytes
    data: bytes = b""


class _Reply(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    code: str
    text: str
    value: bytes = b""


class ProcessSigner:
    """An Ed25519 key in the child's token, as `HsmSigner`."""

    def __init__(self, process: TokenProcess, key_id: bytes, public: bytes) -> None:
        """For `TokenProcess.signer`."""
        self.public = public
        self._process = process
        self._key_id = key_id

    def sign(self, data: bytes) -> bytes:
        """The Ed25519 signature (64 bytes) of `data`.  Raises `ConfigError` if the child or its token is gone."""
        return self._process.ask(_Request("sign", self._key_id, data), SIGN_TIMEOUT_S)


class ProcessP256Signer:
    """A P-256 key in the child's token, as `EcdsaSigner`."""

    def __init__(self, process: TokenProcess, key_id: bytes, public: ec.EllipticCurvePublicKey) -> None:
        """For `TokenProcess.p256_signer`."""
        self.public = public
        self._process = process
        self._key_id = key_id

    def sign(self, data: bytes) -> bytes:
        """The ECDSA signature (SHA-256, DER) of `data`.  Raises `ConfigError` if the child or its token is gone."""
        return self._process.ask(_Request("sign_p256", self._key_id, data), SIGN_TIMEOUT_S)


class TokenProcess:
    """A child with an open token; a context manager.  One request at a time, from any thread."""

    def __init__(self, place: Place, label: str, pin: Secret) -> None:
        """Start the child and wait until the token is open.  Raises `ConfigError`, the token's own included."""
        self.label = label
        self._lock = threading.Lock()
        ours, theirs = socket.socketpair()
        pin_fd = hand_over({"pin": pin})
        try:
            fds = (theirs.fileno(), pin_fd)
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    __name__,
                    str(place.absolute() if isinstance(place, Path) else place),
                    label,
                    *map(str, fds),
                ],
                pass_fds=fds,
                env=environment(os.environ, place.env if isinstance(place, TokenUri) else ()),
                stdin=subprocess.DEVNULL,
                # Ctrl-C reaches the parent alone, which stops things in order.
                start_new_session=True,
            )
        except OSError as exc:
            ours.close()
            raise ConfigError("HSM_PROCESS", f"cannot start a process for token {label!r}: {exc.strerror}") from exc
        finally:
            theirs.close()
            os.close(pin_fd)
        self._connection = Connection(ours.detach())
        try:
            self._receive(START_TIMEOUT_S)
        except BaseException:
            self.close()
            raise

    def signer(self, key_id: bytes) -> ProcessSigner:
        """The Ed25519 key `key_id`.  Raises `ConfigError` for what `Token.signer` refuses."""
        return ProcessSigner(self, key_id, self.ask(_Request("signer", key_id), SIGN_TIMEOUT_S))

    def p256_signer(self, key_id: bytes) -> ProcessP256Signer:
        """The P-256 key `key_id`.  Raises `ConfigError` for what `Token.p256_signer` refuses."""
        public = serialization.load_der_public_key(self.ask(_Request("p256", key_id), SIGN_TIMEOUT_S))
        if not isinstance(public, ec.EllipticCurvePublicKey):
            raise ConfigError("HSM_KEY", f"key {key_id!r} of token {self.label!r} is none of P-256")
        return ProcessP256Signer(self, key_id, public)

    def ask(self, request: _Request, timeout: float) -> bytes:
        """The child's answer within `timeout` seconds.  Raises `ConfigError`."""
        with self._lock:
            try:
                self._connection.send_bytes(msgspec.msgpack.encode(request))
            except OSError as exc:
                raise self._gone() from exc
            return self._receive(timeout)

    def _receive(self, timeout: float) -> bytes:
        try:
            if not self._connection.poll(timeout):
                # A late answer would be taken for that of the next request.
                self._connection.close()
                raise ConfigError("HSM_PROCESS", f"token {self.label!r} did not answer within {timeout:.0f} s")
            reply = msgspec.msgpack.decode(self._connection.recv_bytes(MAX_FRAME), type=_Reply)
        except (EOFError, OSError, *NOT_DECODED) as exc:
            raise self._gone() from exc
        if reply.code:
            raise ConfigError(reply.code, reply.text)
        return reply.value

    def _gone(self) -> ConfigError:
        return ConfigError("HSM_PROCESS", f"the process of token {self.label!r} is gone; start again")

    def close(self) -> None:
        """End the child.  Closing twice is harmless."""
        self._connection.close()
        try:
            self._process.wait(SIGN_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _serve(place: Place, label: str, connection: Connection, pin: Secret) -> None:
    """The child: open the token, say so, answer until the parent is gone."""
    try:
        token = Token.open(place, label, pin)
    except TallystickError as exc:
        connection.send_bytes(msgspec.msgpack.encode(_Reply(exc.code, exc.text)))
        return
    signers: dict[tuple[bool, bytes], HsmSigner | EcdsaSigner] = {}
    with token:
        reply = _Reply("", "")
        while True:
            try:
                connection.send_bytes(msgspec.msgpack.encode(reply))
                data = connection.recv_bytes(MAX_FRAME)
            except (EOFError, OSError):  # the parent is gone
                return
            try:
                reply = _Reply("", "", _answer(token, signers, data))
            except TallystickError as exc:
                reply = _Reply(exc.code, exc.text)


def _answer(token: Token, signers: dict[tuple[bool, bytes], HsmSigner | EcdsaSigner], data: bytes) -> bytes:
    try:
        request = msgspec.msgpack.decode(data, type=_Request)
    except NOT_DECODED as exc:
        raise Malformed("HSM_REQUEST", f"not a request: {exc}") from exc
    p256 = request.op in ("p256", "sign_p256")
    signer = signers.get((p256, request.key_id))
    if signer is None:
        signer = token.p256_signer(request.key_id) if p256 else token.signer(request.key_id)
        signers[p256, request.key_id] = signer
    if request.op in ("sign", "sign_p256"):
        return signer.sign(request.data)
    if isinstance(signer, HsmSigner):
        return signer.public
    return signer.public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def main() -> None:
    """`python -m tallystick.runtime.keys.token_process PLACE LABEL SOCKET_FD PIN_FD`."""
    harden()
    place, label, connection_fd, pin_fd = sys.argv[1:]
    where = parse_token_uri(place) if place.startswith(SCHEME) else Path(place)
    _serve(where, label, Connection(int(connection_fd)), take_over(int(pin_fd))["pin"])


if __name__ == "__main__":
    main()
