"""Account tokens at the broker: an older one brought back is found and undone, revocations with it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tallystick.components.authority.broker import BrokerAdmin
from tallystick.schemas.errors import Malformed, Unverified
from tallystick.schemas.nats_jwt import SessionKey, encode_key
from tallystick.schemas.security import ListedSession
from tests.support.bus import TestBus, running_bus
from tests.support.waiting import until
from tests.support.world import key

COMPONENT = "strategy-alpha"
SECOND = 1_000_000_000
LIFETIME_S = 120


def listed(public: bytes, expires_at: int, component: str = COMPONENT) -> ListedSession:
    return ListedSession(component, bytes(16), bytes(32), expires_at, public)


@pytest.fixture(scope="module")
def bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestBus]:
    with running_bus(tmp_path_factory.mktemp("bus"), provisioned=False) as running:
        yield running


def administrator(bus: TestBus, oldest: int | None = None) -> BrokerAdmin:
    return BrokerAdmin(
        oldest=lambda _: oldest,
        lifetime_s=lambda _: LIFETIME_S,
        url=bus.server.url,
        tls=bus.certificate("authority")[0],
        accounts=bus.accounts,
        keys=bus.keys,
        system_role=key("system role"),
        clock=time.time_ns,
        entropy=os.urandom,
    )


async def test_an_older_account_token_played_back_is_found_and_replaced_with_its_revocations(bus: TestBus) -> None:
    admin = administrator(bus)
    account = encode_key("A", bus.keys.components[COMPONENT].account)
    session = SessionKey(os.urandom(32))
    victim = await bus.connect_as(COMPONENT, session)
    older = bus.accounts.component(COMPONENT, bus.validity)
    revoked = ListedSession(
        component=COMPONENT, boot=bytes(16), credential_hash=bytes(32), expires_at=0, session_key=session.public
    )
    await admin.revoke((revoked,))
    await until(lambda: victim.is_closed, "the end of the connection", 3)
    assert await admin.rolled_back() == []
    # Whoever holds a system session and an older, genuine token brings it back: the revocation is gone.
    system = await bus.connect_system()
    answer = json.loads((await system.request("$SYS.REQ.CLAIMS.UPDATE", older.encode(), timeout=3)).data)
    await system.close()
    assert "error" not in answer, "a broker that refuses older tokens by itself needs no watch"
    assert await admin.rolled_back() == [account]
    assert await admin.rolled_back() == []
    with pytest.raises(Exception, match=r"(?i)authoriz|authentic|closed|violation"):
        await bus.connect_as(COMPONENT, session)


async def test_revocations_of_an_earlier_boot_are_in_every_token_pushed_later(bus: TestBus) -> None:
    session = SessionKey(os.urandom(32))
    revoked = ListedSession(
        component=COMPONENT, boot=bytes(16), credential_hash=bytes(32), expires_at=0, session_key=session.public
    )
    restarted = administrator(bus)
    restarted.remember_revoked((revoked,))
    await restarted.refresh()
    with pytest.raises(Exception, match=r"(?i)authoriz|authentic|closed|violation"):
        await bus.connect_as(COMPONENT, session)


async def test_endless_boots_fill_no_account_token_and_cut_off_nobody_else(bus: TestBus) -> None:
    """With 5,000 revocations the token outgrew its limit: nobody's was renewed, and nobody could be revoked."""
    now = time.time_ns()
    living, dead, late = SessionKey(os.urandom(32)), SessionKey(os.urandom(32)), SessionKey(os.urandom(32))
    connected = await bus.connect_as(COMPONENT, living)
    # Issued half a minute before the session that lives, and just now.
    admin = administrator(bus, oldest=now - 5 * SECOND)
    boots = [listed(os.urandom(32), now + (LIFETIME_S - 30) * SECOND) for _ in range(5000)]
    admin.remember_revoked((*boots, listed(dead.public, now + (LIFETIME_S - 30) * SECOND)))
    await admin.refresh()
    await admin.revoke((listed(late.public, now + LIFETIME_S * SECOND),))
    assert await admin.rolled_back() == []
    for session, issued_s in ((dead, now // SECOND - 30), (late, now // SECOND)):
        with pytest.raises(Exception, match=r"(?i)authoriz|authentic|closed|violation"):
            await bus.connect_as(COMPONENT, session, issued_s=issued_s)
    again = await bus.connect_as(COMPONENT, living, issued_s=now // SECOND)
    await again.flush()
    await again.close()
    await connected.close()


async def test_a_revocation_is_forgotten_when_its_session_has_expired(bus: TestBus) -> None:
    admin = administrator(bus)
    now = time.time_ns()
    admin.remember_revoked(tuple(listed(os.urandom(32), now - 3600 * SECOND) for _ in range(3)))
    admin._clock = lambda: now + 120 * SECOND
    assert admin._revocations(COMPONENT) == {}


async def test_an_account_that_cannot_be_renewed_stops_no_other(bus: TestBus, monkeypatch: pytest.MonkeyPatch) -> None:
    admin = administrator(bus)
    render = bus.accounts.component

    def failing(name: str, *rest: Any) -> str:
        if name == COMPONENT:
            raise Malformed("JWT_SIZE", "a token of 300000 characters")
        return render(name, *rest)

    monkeypatch.setattr(bus.accounts, "component", failing)
    with pytest.raises(Unverified, match=rf"1 of \d+ not confirmed: {COMPONENT}: .*JWT_SIZE"):
        await admin.refresh()
    # SYS, CORE and every other component's.
    assert len(admin._pushed) == len(bus.keys.components) + 1
    other = SessionKey(os.urandom(32))
    await admin.revoke((listed(other.public, time.time_ns() + 60 * SECOND, "gateway"),))
    with pytest.raises(Exception, match=r"(?i)authoriz|authentic|closed|violation"):
        await bus.connect_as("gateway", other)
