"""The authority's own sessions and certificates: nobody else could give it any."""

from __future__ import annotations

from typing import Protocol

from tallystick.runtime.keys.identity import Identity
from tallystick.schemas.nats_jwt import SessionKey


class Mint(Protocol):
    """What makes them: the authority."""

    async def own_certificate(self, present: Identity) -> Identity | None:
        """The next certificate, kept and not shown yet; None while `present` will do."""
        ...

    async def own_session(self, boot: bytes, session_key: bytes, certificate: bytes) -> str:
        """A credential, announced before it is used."""
        ...


class OwnSessions:
    """The authority's credential source for itself: minted here, published like any other; its certificates, too."""

    def __init__(self, authority: Mint, identity: Identity) -> None:
        self._authority = authority
        self._identity = identity
        # What is kept already and shown once there is a session for it.
        self._next: Identity | None = None

    async def obtain(self, key: SessionKey, boot: bytes) -> str:
        """A credential for `key`.  Raises `TallystickError`."""
        self._next = self._next or await self._authority.own_certificate(self._identity)
        shown = self._next or self._identity
        credential = await self._authority.own_session(boot, key.public, shown.fingerprint)
        if self._next is not None:
            self._next = None
            self._identity.reload()
        return credential
