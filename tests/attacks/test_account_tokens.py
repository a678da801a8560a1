"""Account tokens at the broker: an older one brought back is found and undone, revocations with it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator

import pytest

from tallystick.components.authority.broker import BrokerAdmin
from tallystick.schemas.nats_jwt import SessionKey, encode_key
from tallystick.schemas.security import ListedSession
from tests.support.bus import TestBus, running_bus
from tests.support.waiting import until
from tests.support.world import key

COMPONENT = "strategy-alpha"


@pytest.fixture(scope="module")
def bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestBus]:
    with running_bus(tmp_path_factory.mktemp("bus"), provisioned=False) as running:
        yield running


def administrator(bus: TestBus) -> BrokerAdmin:
    return BrokerAdmin(
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
