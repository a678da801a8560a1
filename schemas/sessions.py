"""Which sessions live, as the authority's events say: the pure state that every verifier of the living keeps.

- Only the authority's events count: the trust root gives `cred.>` to it alone, the seal proves it.
- `SessionList` replaces the whole state; only one stated later than the last counts, so an older list
  cannot come back, and neither can an issuance that was stated before the list.
- `SessionRevoked` and `BootEnded` take effect at once, before the next list, and are never undone: a
  list that names a revoked boot again does not revive it.
- A component that the operator revoked (`ComponentRevocation`, signed by him) has no session that was issued since,
  whatever is listed, until he admits it again: the authority cannot do that for him.
- `CredentialIssued` adds a session at once (it is published before the hand-out).
- What was announced stays known after it has expired, for messages that come late or from history
  (`require_announced`): since the first list was heard, whatever was not announced is nobody's.
- `require_listed` fails closed: a list older than `MAX_LIST_AGE_NS`, or stated ahead of this clock by more
  than clocks differ, proves nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from tallystick.schemas.bounds import MAX_LIST_AGE_NS, MAX_SKEW_NS
from tallystick.schemas.credential import Credential
from tallystick.schemas.errors import CouldNotVerify, NotListed, Revoked, Unverified
from tallystick.schemas.seal import Verified
from tallystick.schemas.security import (
    BootEnded,
    ComponentRevocation,
    CredentialIssued,
    ListedSession,
    SessionList,
    SessionRevoked,
)
from tallystick.schemas.trust import Revocation, TrustRoot, open_revocation

# Announced sessions remembered: days of renewals, far beyond any late message.
MAX_ANNOUNCED: Final = 65_536
# Boots that are over, far more than begin while a session lives: what is older has expired as well.
MAX_DEAD: Final = 65_536


class SessionView:
    """The live sessions of one deployment.  Owns its state; feed it every verified `cred.>` message in order."""

    def __init__(self, trust: TrustRoot | None = None) -> None:
        """`trust` names the operator; without it his revocations are not heard."""
        self._trust = trust
        self._revocations: dict[str, Revocation] = {}
        self.listed_at = 0
        # The statement time (Unix ns) of the first list heard: announcements are complete from here on.
        self.since = 0
        self._announced: OrderedDict[bytes, None] = OrderedDict()
        self._live: dict[bytes, ListedSession] = {}
        self._revoked: set[bytes] = set()
        self._dead_boots: OrderedDict[bytes, str] = OrderedDict()

    def apply(self, verified: Verified) -> None:
        """Take in one verified message; other kinds than `cred` are ignored."""
        if verified.subject.kind != "cred":
            return
        for event in verified.events:
            if isinstance(event, SessionList):
                self.since = self.since or verified.statement.time
                for session in event.live:
                    self._announce(session.credential_hash)
                if verified.statement.time > self.listed_at:
                    self.listed_at = verified.statement.time
                    self._live = {s.credential_hash: s for s in event.live}
                    self._revoked = set(event.revoked)
            elif isinstance(event, CredentialIssued):
                self._announce(event.credential_hash)
                if verified.statement.time < self.listed_at:
                    continue  # the list knows it, or knows better
                component = verified.subject.component
                self._live[event.credential_hash] = ListedSession(
                    component=component,
                    boot=event.boot,
                    credential_hash=event.credential_hash,
                    expires_at=event.expires_at,
                    session_key=event.session_key,
                )
            elif isinstance(event, SessionRevoked | BootEnded):
                self._dead_boots[event.boot] = event.reason
                if len(self._dead_boots) > MAX_DEAD:
                    self._dead_boots.popitem(last=False)
                self._live = {k: s for k, s in self._live.items() if s.boot != event.boot}

            elif isinstance(event, ComponentRevocation) and self._trust is not None:
                self.revoke(event.note, self._trust)

    def revoke(self, note: str, trust: TrustRoot) -> None:
        """Take in an operator's word on a component; an older one than is known changes nothing.

        Raises `Malformed` or `Unverified` for what he did not sign.
        """
        said = open_revocation(note, trust)
        known = self._revocations.get(said.component)
        if known is None or said.number > known.number:
            self._revocations[said.component] = said

    def _announce(self, digest: bytes) -> None:
        self._announced[digest] = None
        if len(self._announced) > MAX_ANNOUNCED:
            self._announced.popitem(last=False)

    def require_announced(self, credential: Credential, when: int) -> None:
        """Raise `NotListed` for a session that the authority never announced.

        `when` (Unix ns) is when the message was stated or stored, whichever is later; before the first list was
        heard nothing is known and nothing is refused.  For what is late or history: it need not live any more.
        """
        if self.since and when >= self.since and credential.digest not in self._announced:
            raise NotListed(
                "SESSION_UNLISTED", f"{credential.component}/{credential.boot.hex()[:8]} was never announced"
            )

    def require_fresh(self, now: int) -> None:
        """Raise `CouldNotVerify` unless the newest list is recent at `now` (Unix ns)."""
        age = now - self.listed_at
        if age > MAX_LIST_AGE_NS:
            shown = "never seen" if self.listed_at == 0 else f"{age / 1e9:.3f} s old"
            raise CouldNotVerify("SESSIONS_STALE", f"session list: {shown}, limit {MAX_LIST_AGE_NS / 1e9:.0f} s")
        if age < -MAX_SKEW_NS:
            raise CouldNotVerify("SESSIONS_FUTURE", f"session list: stated {-age / 1e9:.3f} s ahead of this clock")

    def require_not_revoked(self, credential: Credential) -> None:
        """Raise `Revoked` if the credential's boot or session is known to be revoked."""
        said = self._revocations.get(credential.component)
        if said is not None and said.revoked and credential.expires_at > said.since:
            raise Revoked(
                "SESSION_REVOKED",
                f"{credential.component} is revoked by the operator (number {said.number}): {said.reason}",
            )
        reason = self._dead_boots.get(credential.boot)
        if reason is not None or credential.digest in self._revoked:
            raise Revoked(
                "SESSION_REVOKED",
                f"{credential.component}/{credential.boot.hex()[:8]}: {reason or 'revoked by the authority'}",
            )

    def require_listed(self, credential: Credential, now: int) -> None:
        """Raise `Unverified` unless the session is on a fresh list, unexpired and not revoked at `now`."""
        self.require_fresh(now)
        self.require_not_revoked(credential)
        session = self._live.get(credential.digest)
        if session is None or session.boot != credential.boot or session.component != credential.component:
            raise NotListed("SESSION_UNLISTED", f"{credential.component}/{credential.boot.hex()[:8]} is not listed")
        if now > session.expires_at:
            raise Unverified("SESSION_EXPIRED", f"{credential.component} expired at {session.expires_at}, now {now}")

    def live(self, component: str, now: int) -> list[ListedSession]:
        """The unexpired listed sessions of a component, newest expiry last."""
        found = [
            s
            for s in self._live.values()
            if s.component == component and s.expires_at >= now and s.boot not in self._dead_boots
        ]
        return sorted(found, key=lambda s: s.expires_at)

    def all_live(self) -> list[ListedSession]:
        """Every listed session, for display."""
        return sorted(self._live.values(), key=lambda s: s.component)

    def is_dead(self, boot: bytes) -> bool:
        """Whether a boot is known to have ended or been revoked."""
        return boot in self._dead_boots
