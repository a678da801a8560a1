"""Who gets a credential, for how long, and when it ends: the pure rules.

- A request counts only from the component whose SPIFFE id the client certificate carries, and with the
  session key's proof (`enrolment`).
- A boot that has a live session gets another one only with the word of a key that it holds already: whoever copied the
  certificate has to start a boot of his own, which ends the true one and shows.
- One live boot a component.  A request of a new boot revokes the one before; a boot that ended or was
  revoked never gets a credential again.
- A credential lives as long as the trust root lets the component's tokens live, never longer, and never longer than the
  certificate that it was asked for under.
- A session is on the list from its issue until it expires; a boot whose last session expired without
  renewal has ended.
- A component boots at most `BOOTS` times at once and once in `BOOT_S` on the long run: who boots without end is an
  alarm, and fills neither the broker's tokens nor anybody's memory.
- A component is given at most `BURST` sessions at once and `PER_SECOND` on the long run, and the newest `MAX_LIVE` of
  a boot are listed: whoever asks for more fills neither the list, which must fit one message, nor the queue.
- State after a restart comes from the newest list and what was published after it (`restore`).

The authority mints any component's sessions: whoever controls it can act as all of them until the list
and the log show it; custody's operator-signed caps bound the loss.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec

from tallystick.schemas.bounds import SECOND
from tallystick.schemas.ed25519 import KEY_BYTES, SIGNATURE_BYTES, BadSignature, verify
from tallystick.schemas.enrolment import SessionRequest, hex_bytes, proof_bytes
from tallystick.schemas.errors import BootOver, Unverified
from tallystick.schemas.nats_jwt import (
    BOOT_BYTES,
    Signer,
    decode_key,
    encode_jwt,
    user_claims,
)
from tallystick.schemas.security import ListedSession
from tallystick.schemas.trust import TrustRoot

# Renewal needs two sessions at a time, and as many again where answers got lost.
MAX_LIVE: Final = 8
MAX_GIVEN: Final = 64
# A process that crashes and starts again all the time stays far below; restarts of a whole desk come at once.
BURST: Final = 64
PER_SECOND: Final = 2
# The supervisor gives up after ten boots in a minute.
BOOTS: Final = 30
BOOT_S: Final = 10
# The list names revoked sessions until they would have expired, so that a list is enough to refuse them.


class Issued(msgspec.Struct, frozen=True, kw_only=True):
    """A new session and what it replaces; times are Unix nanoseconds."""

    session: ListedSession
    credential: str
    issued_at: int
    replaced: tuple[ListedSession, ...]


class Issuer:
    """Owns the table of sessions.  Nothing here waits, publishes or knows a network."""

    def __init__(self, trust: TrustRoot, role_signer: Callable[[str], Signer], lifetime_s: int | None = None) -> None:
        """`role_signer` gives a component's role key; `lifetime_s` shortens every lifetime (never lengthens)."""
        self._trust = trust
        self._role_signer = role_signer
        self._lifetime_s = lifetime_s
        self._sessions: dict[bytes, ListedSession] = {}
        self._revoked: dict[bytes, int] = {}
        self._dead: dict[bytes, int] = {}
        self._count = 0
        self._credit: dict[str, tuple[int, int]] = {}
        self._boots: dict[str, tuple[int, int]] = {}
        self._given: dict[bytes, deque[bytes]] = {}

    def restore(self, live: tuple[ListedSession, ...], revoked: tuple[bytes, ...], now: int) -> None:
        """Take up the newest list of the boot before."""
        for session in live:
            # The broker brings lists and revocations in whatever order it likes: an end is never undone.
            if session.expires_at > now and session.boot not in self._dead:
                self._sessions[session.credential_hash] = session
        horizon = now + max(c.lifetime for c in self._trust.components.values()) * SECOND
        for digest in revoked:
            self._revoked[digest] = horizon

    def check(self, request: SessionRequest, component: str, certificate: bytes) -> tuple[bytes, bytes]:
        """(boot, session key) of a request if it may be answered; `component` is the certificate's.

        `certificate` is the SHA-256 of the client certificate.  Raises `Malformed` or `Unverified`.
        """
        if request.component != component:
            raise Unverified("IDENTITY", f"the certificate is {component}'s, the request {request.component[:48]!r}'s")
        self._trust.component(component)
        boot = hex_bytes(request.boot, BOOT_BYTES, "boot")
        key = hex_bytes(request.session_key, KEY_BYTES, "session_key")
        proof = hex_bytes(request.proof, SIGNATURE_BYTES, "proof")
        try:
            verify(key, proof, proof_bytes(self._trust.deployment, component, boot, key, certificate))
        except BadSignature as exc:
            raise Unverified("PROOF", f"{component} did not prove that it holds the session key") from exc
        self._require_holder(request, component, boot, key, certificate)
        return boot, key

    def require_spoken(self, component: str, boot: bytes, said: bytes, signature: bytes) -> None:
        """Raise `Unverified` unless a key of `boot`, which has a live session, signed `said`."""
        if not any(s.component == component and s.boot == boot for s in self._sessions.values()):
            raise Unverified("BOOT_UNKNOWN", f"no live session of boot {boot.hex()[:8]} of {component}")
        # Answers get lost, and their sessions push older ones off the list: every key given to the boot speaks for it.
        held = [s.session_key for s in self._sessions.values() if s.component == component and s.boot == boot]
        for public in [*held, *self._given.get(boot, ())]:
            try:
                verify(public, signature, said)
            except BadSignature:
                continue
            return
        raise Unverified("RENEWAL", f"boot {boot.hex()[:8]} of {component} is another process's: no key of it signed")

    def _require_holder(
        self, request: SessionRequest, component: str, boot: bytes, key: bytes, certificate: bytes
    ) -> None:
        held = [s.session_key for s in self._sessions.values() if s.component == component and s.boot == boot]
        if not held or key in held:
            return
        said = proof_bytes(self._trust.deployment, component, boot, key, certificate)
        self.require_spoken(component, boot, said, hex_bytes(request.renewal, SIGNATURE_BYTES, "renewal"))

    def issue(self, component: str, boot: bytes, session_key: bytes, now: int, ends: int = 2**63 - 1) -> Issued:
        """A new session at `now` (Unix ns) for who shows a certificate that `ends` then.

        Raises `Unverified`: for a boot that ended (`BootOver`), for one that asks too often, for a certificate that would
        end first.
        """
        if boot in self._dead:
            raise BootOver("BOOT_ENDED", f"boot {boot.hex()[:8]} of {component} ended; start a new one")
        record = self._trust.component(component)
        lifetime = self.lifetime_s(component)
        issued_s = now // SECOND
        if (issued_s + lifetime) * SECOND > ends:
            left = max(0, ends - now) // SECOND
            raise Unverified(
                "CERTIFICATE_ENDS",
                f"the certificate of {component} has {left} s to go, a session {lifetime} s: renew it",
            )
        new = not any(s.boot == boot for s in self._sessions.values())
        if new and not spend(self._boots, component, now, BOOTS * BOOT_S * SECOND, BOOT_S * SECOND, 1):
            raise Unverified("BOOT_RATE", f"{component} boots more than once in {BOOT_S} s")
        if not spend(self._credit, component, now, BURST * SECOND, SECOND, PER_SECOND):
            raise Unverified("SESSION_RATE", f"{component} asks for more than {PER_SECOND} sessions a second")
        self._count += 1
        signer = self._role_signer(component)
        claims = user_claims(
            component,
            boot,
            session_key,
            decode_key("A", record.role_key),
            decode_key("A", record.account),
            issued_s,
            issued_s + lifetime,
            f"{boot.hex()[:16]}-{now}-{self._count}",
        )
        credential = encode_jwt(signer, "A", claims)
        session = ListedSession(
            component=component,
            boot=boot,
            credential_hash=hashlib.sha256(credential.encode("ascii")).digest(),
            expires_at=(issued_s + lifetime) * SECOND,
            session_key=session_key,
        )
        replaced = self.supersede(component, boot)
        self._sessions[session.credential_hash] = session
        self._given.setdefault(boot, deque(maxlen=MAX_GIVEN)).append(session_key)
        own = [k for k, s in self._sessions.items() if s.boot == boot and s.component == component]
        for digest in own[:-MAX_LIVE]:
            del self._sessions[digest]
        return Issued(session=session, credential=credential, issued_at=issued_s * SECOND, replaced=replaced)

    def lifetime_s(self, component: str) -> int:
        """How long a component's sessions live, in seconds."""
        lifetime = self._trust.component(component).lifetime
        return lifetime if self._lifetime_s is None else min(lifetime, self._lifetime_s)

    def oldest(self, component: str) -> int | None:
        """When the oldest live session of a component was issued (Unix ns); None: it has none."""
        live = [s.expires_at for s in self._sessions.values() if s.component == component]
        return min(live) - self.lifetime_s(component) * SECOND if live else None

    def forget_boot(self, boot: bytes, now: int) -> None:
        """A boot is known to have ended (from the log, after a restart)."""
        self._dead[boot] = now
        self._revoked |= {k: s.expires_at for k, s in self._sessions.items() if s.boot == boot}
        self._sessions = {k: s for k, s in self._sessions.items() if s.boot != boot}

    def supersede(self, component: str, boot: bytes) -> tuple[ListedSession, ...]:
        """End the sessions of every other boot of a component."""
        found = tuple(s for s in self._sessions.values() if s.component == component and s.boot != boot)
        for session in found:
            self._kill(session)
        return found

    def revoke(self, component: str) -> tuple[ListedSession, ...]:
        """End every session of a component; its running boot gets no other."""
        found = tuple(s for s in self._sessions.values() if s.component == component)
        for session in found:
            self._kill(session)
        return found

    def end(self, component: str, boot: bytes, session_key: bytes) -> tuple[ListedSession, ...]:
        """A boot says that it ends.  Raises `Unverified` unless it holds a live session of that boot."""
        found = tuple(s for s in self._sessions.values() if s.component == component and s.boot == boot)
        if not any(s.session_key == session_key for s in found):
            raise Unverified("BOOT_UNKNOWN", f"no live session of boot {boot.hex()[:8]} of {component}")
        for session in found:
            self._kill(session)
        return found

    def _kill(self, session: ListedSession) -> None:
        self._sessions.pop(session.credential_hash, None)
        self._revoked[session.credential_hash] = session.expires_at
        self._dead[session.boot] = session.expires_at

    def expire(self, now: int) -> tuple[ListedSession, ...]:
        """Forget what expired; returns the last session of each boot that ended by it."""
        gone = [s for s in self._sessions.values() if s.expires_at <= now]
        for session in gone:
            del self._sessions[session.credential_hash]
        alive = {s.boot for s in self._sessions.values()}
        self._given = {k: keys for k, keys in self._given.items() if k in alive}
        ended = {s.boot: s for s in gone if s.boot not in alive}
        for session in ended.values():
            # A boot id is 16 random bytes and is remembered for a day: longer than any session or retry.
            self._dead[session.boot] = now + 86_400 * SECOND
        self._revoked = {k: until for k, until in self._revoked.items() if until > now}
        self._dead = {k: until for k, until in self._dead.items() if until + 86_400 * SECOND > now}
        return tuple(ended.values())

    @property
    def live(self) -> tuple[ListedSession, ...]:
        """Every session that may act, by component."""
        return tuple(sorted(self._sessions.values(), key=lambda s: (s.component, s.expires_at)))

    @property
    def revoked(self) -> tuple[bytes, ...]:
        """The credential hashes of revoked sessions that have not expired yet."""
        return tuple(sorted(self._revoked))


def spend(account: dict[str, tuple[int, int]], component: str, now: int, full: int, price: int, gain: int) -> bool:
    """Take `price` of a component's credit, which grows by `gain` a nanosecond up to `full`; False: it has too little."""
    credit, last = account.get(component, (full, now))
    credit = min(full, credit + max(0, now - last) * gain)
    enough = credit >= price
    account[component] = (credit - price if enough else credit, max(now, last))
    return enough
