"""Who may act now: the one place where a component asks, and waits for what is still on its way.

- The rules are `SessionView`'s, the answer is a `Standing`.
- Sessions are announced and listed on SECURITY, another stream than most: a message of a new session may be heard
  before its listing.  If the session was issued within `FRESH_SESSION_NS`, its message waits up to `LISTING_NS` for that; for
  messages on SECURITY itself nothing can be under way.
- A session is waited for once, and after `MAX_FUTILE` sessions that never came in `FRESH_SESSION_NS` nobody is waited for:
  whoever mints sessions with a stolen role key holds up no reader.
- Waiting is measured by the event loop, so that a clock that steps makes it neither longer nor shorter.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from tallystick.runtime.bus.received import Received
from tallystick.schemas.bounds import FRESH_SESSION_NS, LISTING_NS, SECOND
from tallystick.schemas.credential import Credential
from tallystick.schemas.errors import CouldNotVerify, NotListed, Unverified
from tallystick.schemas.seal import Verified
from tallystick.schemas.sessions import SessionView
from tallystick.schemas.standing import LISTED, Standing
from tallystick.schemas.subjects import SECURITY
from tallystick.schemas.trust import TrustRoot

# Sessions that were waited for in vain: remembered, and as many at most in `FRESH_SESSION_NS`.
MAX_WAITED: Final = 1024
MAX_FUTILE: Final = 4
_HISTORY: Final = Unverified("HISTORY", "it was stored before this process had read what came before it")


class Admission:
    """See the module docstring.  Owns the view of sessions; `learn` is its only input."""

    def __init__(self, clock: Callable[[], int], trust: TrustRoot | None = None) -> None:
        """`trust` names the operator, whose revocations count; without it nobody's do."""
        self.sessions = SessionView(trust)
        self._clock = clock
        self._learned = asyncio.Event()
        self._waited: OrderedDict[bytes, None] = OrderedDict()
        self._futile: deque[int] = deque(maxlen=MAX_FUTILE)

    def learn(self, verified: Verified) -> None:
        """Take in a verified message; only the authority's count."""
        if verified.subject.kind == "cred":
            self.sessions.apply(verified)
            self._learned.set()
            self._learned = asyncio.Event()

    async def standing(self, received: Received) -> Standing:
        """What the session that sealed `received` may do.  Raises `Unverified` where that is nothing."""
        credential, stream = received.credential, received.subject.stream
        when = max(received.statement.time, received.stored)

        def announced() -> None:
            self.sessions.require_announced(credential, when)

        if not received.live:
            await self._require(announced, credential, stream)
            return Standing("past", received.refusal or _HISTORY)
        try:
            await self.require_listed(credential, stream)
        except CouldNotVerify as exc:
            await self._require(announced, credential, stream)
            return Standing("unproven", exc)
        return LISTED

    async def require_listed(self, credential: Credential, stream: str) -> None:
        """Raise `Unverified` unless the session that sealed something of `stream` is listed now, or in a moment."""
        await self._require(lambda: self.sessions.require_listed(credential, self._clock()), credential, stream)

    async def _require(self, require: Callable[[], None], credential: Credential, stream: str) -> None:
        deadline = asyncio.get_running_loop().time() + LISTING_NS / SECOND
        while True:
            learned = self._learned
            try:
                require()
            except NotListed:
                left = deadline - asyncio.get_running_loop().time()
                if stream == SECURITY or not self._may_wait(credential, left):
                    raise
                with suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await learned.wait()
            else:
                return

    def _may_wait(self, credential: Credential, left: float) -> bool:
        now = self._clock()
        if credential.digest in self._waited or abs(now - credential.issued_at) >= FRESH_SESSION_NS:
            return False
        if len(self._futile) == MAX_FUTILE and abs(now - self._futile[0]) < FRESH_SESSION_NS:
            return False
        if left > 0:
            return True
        self._futile.append(now)
        self._waited[credential.digest] = None
        if len(self._waited) > MAX_WAITED:
            self._waited.popitem(last=False)
        return False
