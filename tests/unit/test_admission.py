from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from tallystick.runtime.bus import admission
from tallystick.runtime.bus.admission import MAX_FUTILE, Admission
from tallystick.runtime.bus.received import Received
from tallystick.schemas.bounds import FRESH_SESSION_NS, LISTING_NS, MAX_LIST_AGE_NS, SECOND
from tallystick.schemas.credential import Credential
from tallystick.schemas.errors import NotListed, Revoked, Stale, Unverified
from tallystick.schemas.event import Event
from tallystick.schemas.seal import Statement, Verified
from tallystick.schemas.security import ListedSession, SessionList
from tallystick.schemas.subjects import parse_subject
from tests.support import world

NOW = world.NOW
ORDER = "order.intent.alpha.paper.XRP-ETH"


def verified(credential: Credential, subject: str, *events: Event, time: int = NOW) -> Verified:
    parsed = parse_subject(subject)
    statement = Statement(
        deployment="test", component=credential.component, boot=credential.boot, stream=parsed.stream, seq=0,
        prev=bytes(32), size=1, root=bytes(32), time=time, flags=0, credential=credential.digest,
    )  # fmt: skip
    return Verified(
        subject=parsed, events=list(events), statement=statement, credential=credential, index=0, leaf=bytes(32),
        digest=bytes(32), payload=b"",
    )  # fmt: skip


def heard(
    credential: Credential, subject: str = ORDER, *, live: bool = True, refusal: Unverified | None = None
) -> Received:
    message = verified(credential, subject)
    return Received(verified=message, stream_seq=1, stored=NOW, received=NOW, live=live, refusal=refusal)


def listing(*credentials: Credential, revoked: tuple[bytes, ...] = (), at: int = NOW) -> Verified:
    live = tuple(ListedSession(c.component, c.boot, c.digest, c.expires_at) for c in credentials)
    event = SessionList(id=bytes(16), ts=at, number=1, live=live, revoked=revoked)
    return verified(world.credential("authority")[0], "cred.authority", event, time=at)


def minted(number: int, issued_at: int = NOW) -> Credential:
    return world.credential("strategy-alpha", jti=str(number), boot=world.seed(str(number))[:16], issued_at=issued_at)[
        0
    ]


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def seconds(work: Callable[[], object]) -> float:
    began = asyncio.get_running_loop().time()
    with pytest.raises(NotListed):
        await work()  # type: ignore[misc]
    return asyncio.get_running_loop().time() - began


async def test_a_listed_session_may_act(clock: Clock) -> None:
    door, session = Admission(clock), minted(1)
    door.learn(listing(session))
    standing = await door.standing(heard(session))
    assert standing.kind == "listed"
    standing.require_listed()


async def test_with_a_stale_list_an_announced_session_is_unproven_and_a_stranger_nobody(clock: Clock) -> None:
    door, session = Admission(clock), minted(1)
    door.learn(listing(session))
    clock.now += MAX_LIST_AGE_NS + 1
    standing = await door.standing(heard(session))
    assert standing.kind == "unproven"
    with pytest.raises(Unverified, match="SESSIONS_STALE"):
        standing.require_listed()
    with pytest.raises(NotListed):
        await door.standing(heard(minted(2, issued_at=NOW - 60 * SECOND)))


async def test_what_is_late_or_history_is_past_if_it_was_announced(clock: Clock) -> None:
    door, session = Admission(clock), minted(1)
    door.learn(listing(session))
    late = Stale("STALE", "4 s old")
    assert (await door.standing(heard(session, live=False, refusal=late))).why is late
    history = await door.standing(heard(session, live=False))
    assert history.kind == "past"
    with pytest.raises(Unverified, match="HISTORY"):
        history.require_listed()
    with pytest.raises(NotListed):
        await door.standing(heard(minted(2, issued_at=NOW - 60 * SECOND), live=False))


async def test_a_revoked_session_may_nothing(clock: Clock) -> None:
    door, session = Admission(clock), minted(1)
    door.learn(listing(session, revoked=(session.digest,)))
    with pytest.raises(Revoked):
        await door.standing(heard(session))


async def test_a_message_waits_for_the_listing_of_its_new_session(clock: Clock) -> None:
    door, session = Admission(clock), minted(1)
    door.learn(listing())
    asking = asyncio.ensure_future(door.standing(heard(session)))
    await asyncio.sleep(0)
    assert not asking.done()
    door.learn(listing(session, at=NOW + 1))
    assert (await asking).kind == "listed"


async def test_nothing_is_waited_for_on_the_stream_that_lists(clock: Clock) -> None:
    door = Admission(clock)
    door.learn(listing())
    asking = asyncio.ensure_future(door.standing(heard(minted(1), "control.breaker.all")))
    await asyncio.sleep(0)
    assert isinstance(asking.exception(), NotListed)


async def test_a_clock_that_steps_makes_no_wait_longer(clock: Clock) -> None:
    door = Admission(clock)
    door.learn(listing())
    asking = asyncio.ensure_future(seconds(lambda: door.require_listed(minted(1), "ORDERS")))
    await asyncio.sleep(0)
    clock.now -= SECOND // 2
    door.learn(listing(at=NOW + 1))
    assert await asking < 4 * LISTING_NS / SECOND


async def test_a_stranger_is_waited_for_once_and_strangers_without_end_hold_up_nobody(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has a role key mints as many sessions as he likes; each may cost the reader nothing beyond a bound."""
    monkeypatch.setattr(admission, "LISTING_NS", 50_000_000)
    door = Admission(clock)
    door.learn(listing())
    strangers = [minted(number) for number in range(100)]
    began = asyncio.get_running_loop().time()
    for stranger in strangers:
        for _ in range(3):
            with pytest.raises(NotListed):
                await door.standing(heard(stranger))
    assert asyncio.get_running_loop().time() - began < MAX_FUTILE * 0.05 + 1.5
    assert list(door._waited) == [stranger.digest for stranger in strangers[:MAX_FUTILE]]
    # After a while an honest newcomer is waited for again.
    clock.now += FRESH_SESSION_NS
    late = minted(999, issued_at=clock.now)
    door.learn(listing(at=clock.now))
    asking = asyncio.ensure_future(door.standing(heard(late)))
    await asyncio.sleep(0)
    door.learn(listing(late, at=clock.now + 1))
    assert (await asking).kind == "listed"
