"""The ways to log in: AppRole with a wrapped secret id, TLS certificate, Kubernetes service account.

- AppRole: whoever starts the process asks for a secret id, gets it wrapped, and hands over the wrapping token, for one
  login alone.  A second login needs a second one, asked for on the channel to the supervisor (`SecretIds`).
- Certificate: what our TLS shows is all; the role says whose it must be.
- Kubernetes: the pod's service-account token, read anew each time, since the cluster replaces it.
"""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import Final, Protocol

from tallystick.runtime.keys.keystore import Secret
from tallystick.runtime.vault.client import Grant, VaultAway, VaultClient, VaultRefused

ASK: Final = b"?"
GIVEN: Final = b"+"
ANSWER_S: Final = 8.0
MAX_TOKEN: Final = 4_096
MAX_JWT: Final = 16_384


class Login(Protocol):
    """How a component logs in; blocks, in a worker's thread."""

    def __call__(self, client: VaultClient) -> Grant:
        """Log `client` in.  Raises `VaultAway` or `VaultRefused`."""
        ...


class SecretIds:
    """Wrapping tokens for one component: the one that was handed over, then what the supervisor gives on `channel`."""

    def __init__(self, handed: Secret | None, channel: socket.socket | None = None) -> None:
        self._handed = handed
        self._channel = channel

    def __call__(self) -> Secret:
        """The next one.  Raises `VaultAway` where the supervisor has none now, `VaultRefused` where nobody gives any."""
        if self._handed is not None:
            handed, self._handed = self._handed, None
            return handed
        if self._channel is None:
            raise VaultRefused(
                "VAULT_SECRET_ID", "the one secret id is spent, and nobody gives another: start this process again"
            )
        try:
            self._drain(self._channel)
            self._channel.settimeout(ANSWER_S)
            self._channel.send(ASK)
            answer = self._channel.recv(MAX_TOKEN)
        except OSError as exc:
            raise VaultAway("VAULT_SECRET_ID", f"the supervisor gives no secret id: {type(exc).__name__}") from exc
        if not answer.startswith(GIVEN):
            raise VaultAway(
                "VAULT_SECRET_ID", f"the supervisor has no secret id: {answer[:200].decode('utf-8', 'replace')}"
            )
        return Secret(answer[len(GIVEN) :].decode("utf-8", "replace"))

    @staticmethod
    def _drain(channel: socket.socket) -> None:
        """An answer that came after we had stopped waiting is to an older question."""
        channel.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            while channel.recv(MAX_TOKEN):
                pass


class AppRole:
    """`role` is the role's name and its role id."""

    def __init__(self, role: str, secret_ids: SecretIds) -> None:
        self._role = role
        self._secret_ids = secret_ids

    def __call__(self, client: VaultClient) -> Grant:
        """See `Login`; `VAULT_WRAPPING_USED` says that somebody was faster."""
        secret_id = client.unwrap_secret_id(self._secret_ids(), self._role)
        return client.login("approle", {"role_id": self._role, "secret_id": secret_id})


class Certificate:
    """`role` is the name of the certificate role."""

    def __init__(self, role: str) -> None:
        self._role = role

    def __call__(self, client: VaultClient) -> Grant:
        """See `Login`."""
        return client.login("cert", {"name": self._role})


class Kubernetes:
    """`role` at the cluster's auth method; `path` holds the service account's token."""

    def __init__(self, role: str, path: Path) -> None:
        self._role = role
        self._path = path

    def __call__(self, client: VaultClient) -> Grant:
        """See `Login`."""
        try:
            with self._path.open("rb") as file:
                jwt = file.read(MAX_JWT + 1).decode("ascii").strip()
        except (OSError, UnicodeDecodeError) as exc:
            raise VaultRefused(
                "VAULT_JWT", f"{self._path}: {type(exc).__name__}; is a service account mounted?"
            ) from exc
        if not 0 < len(jwt) <= MAX_JWT:
            raise VaultRefused("VAULT_JWT", f"{self._path} holds {len(jwt)} characters, not 1 to {MAX_JWT}")
        return client.login("kubernetes", {"role": self._role, "jwt": Secret(jwt)})
