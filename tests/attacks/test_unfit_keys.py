"""A key that can too much at the venue: custody signs no order with it, and cancels all the same; what excepts it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from tallystick import venues
from tallystick.components.paper_exchange.access import Key
from tallystick.runtime.bus.received import Received
from tallystick.runtime.bus.tasks import end
from tallystick.schemas.errors import LeaseOver, TallystickError, Unverified
from tallystick.schemas.key_exceptions import MAX_EXCEPTION_NS, KeyException, open_key_exception
from tallystick.schemas.orders import Decision
from tallystick.schemas.security import ConfigChanged
from tallystick.schemas.trust import sign_document
from tallystick.venues import key_check
from tallystick.venues.key_check import EXCEPTIONS
from tallystick.venues.key_holder import RenewableStream
from tests.support.bus import TestBus, running_bus
from tests.support.trading import Floor, trading
from tests.support.waiting import until
from tests.support.world import key

on_its_loop = pytest.mark.asyncio(loop_scope="module")
HOUR = 3_600 * 10**9
UNFIT: dict[str, dict[str, Any]] = {
    "KEY_CAN_WITHDRAW enableWithdrawals": {"permissions": frozenset({"read", "trade", "withdraw"})},
    "KEY_NOT_IP_BOUND": {"ips": ()},
    "KEY_TOO_NARROW": {"permissions": frozenset({"read"})},
}
SETTINGS = {
    "KEY_CAN_WITHDRAW enableWithdrawals": "untick 'Enable Withdrawals'",
    "KEY_NOT_IP_BOUND": "'Restrict access to trusted IPs only'",
    "KEY_TOO_NARROW": "tick what allows to trade",
}


@pytest.fixture(scope="module")
def bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestBus]:
    with running_bus(tmp_path_factory.mktemp("b") / "bus") as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def floor(bus: TestBus, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Floor]:
    async with trading(bus, tmp_path_factory.mktemp("f") / "floor") as opened:
        await opened.execution()
        yield opened


@pytest.fixture
def good(floor: Floor) -> Iterator[Key]:
    """The key as it should be, which it is again afterwards."""
    held = floor.exchange.keys.of("main")[0]
    yield held
    floor.exchange.keys.put(held)
    for path in (floor.deployment.trust / EXCEPTIONS).glob("*"):
        path.unlink()


async def restarted(floor: Floor) -> None:
    await floor.gone(floor.people["custody"])
    await floor.custody()


async def refused(floor: Floor) -> None:
    posted = len(floor.posted())
    placed = await floor.place()
    await floor.until(lambda: floor.states(placed)[-1:] == ["void"])
    assert floor.last(placed).code == "KEY_UNFIT"
    assert len(floor.posted()) == posted


async def accepted(floor: Floor) -> Decision:
    """An order that rests; a custody that has just started may not have heard the breaker or the lease yet."""
    for _ in range(50):
        placed = await floor.place()
        await floor.until(lambda: floor.states(placed)[-1:] in (["accepted"], ["void"]))  # noqa: B023
        if floor.states(placed)[-1] == "accepted":
            return placed
        assert floor.last(placed).code != "KEY_UNFIT", floor.last(placed).text
        await asyncio.sleep(0.05)
    raise AssertionError(floor.events[-3:])


async def cancelled(floor: Floor, resting: Decision) -> None:
    gateway = floor.people["gateway"]
    ids: Any = {"intent_id": resting.intent_id, "intent_hash": bytes(32), "trust_root": bytes(32)}
    await floor.publish(gateway.new(Decision, verdict="cancel", **ids))
    await floor.until(lambda: floor.states(resting)[-1:] == ["closed"])


@on_its_loop
@pytest.mark.parametrize("defect", UNFIT)
async def test_at_a_start_no_order_is_signed_with_an_unfit_key_and_every_cancel_is(
    floor: Floor, good: Key, defect: str
) -> None:
    await restarted(floor)
    resting, told = await accepted(floor), len(floor.notices)
    floor.exchange.keys.put(msgspec.structs.replace(good, **UNFIT[defect]))
    await restarted(floor)
    await refused(floor)
    if "trade" in floor.exchange.keys.of("main")[0].permissions:
        await cancelled(floor, resting)
    await floor.until(lambda: any(SETTINGS[defect] in n.text for n in floor.notices[told:]))
    said = next(n for n in floor.notices[told:] if SETTINGS[defect] in n.text)
    assert said.code == defect.partition(" ")[0]


@on_its_loop
async def test_a_key_that_becomes_unfit_while_it_is_used_stops_orders_at_the_next_look(
    floor: Floor, good: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_check, "CHECK_NS", 10**8)
    monkeypatch.setattr(key_check, "RETRY_S", 0.1)
    await restarted(floor)
    await accepted(floor)
    floor.exchange.keys.put(msgspec.structs.replace(good, permissions=frozenset({"read", "trade", "withdraw"})))
    custody: Any = floor.running[floor.people["custody"].boot]
    await floor.until(lambda: not custody._check.live(time.time_ns()))
    await refused(floor)
    # Somebody corrects the setting: it goes on by itself.
    floor.exchange.keys.put(good)
    await floor.until(lambda: custody._check.live(time.time_ns()))
    await accepted(floor)


@on_its_loop
async def test_a_key_that_the_venue_does_not_know_any_more_is_a_matter_of_security(floor: Floor, good: Key) -> None:
    told = len(floor.notices)
    floor.exchange.keys.put(msgspec.structs.replace(good, ips=("192.0.2.1",)))
    await restarted(floor)
    await floor.until(lambda: any(n.code == "VENUE_CREDENTIAL" for n in floor.notices[told:]))
    await refused(floor)


@on_its_loop
async def test_without_an_answer_of_the_venue_no_order_is_signed_and_cancels_are(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: Any, **__: Any) -> tuple[int, bytes]:
        return 503, b"<html>"

    await restarted(floor)
    resting = await accepted(floor)
    monkeypatch.setattr(key_check, "get", away)
    monkeypatch.setattr("tallystick.components.custody.main.CHECKED_S", 0.1)
    await restarted(floor)
    await refused(floor)
    await cancelled(floor, resting)


def exception(floor: Floor, **changed: Any) -> KeyException:
    now = time.time_ns()
    given: dict[str, Any] = {
        "deployment": floor.desk.trust.deployment,
        "venue": "paper",
        "component": "custody",
        "defects": ("KEY_NOT_IP_BOUND",),
        "start": now - HOUR,
        "until": now + HOUR,
        "reason": "a new uplink",
    }
    return KeyException(**(given | changed))


def lay(floor: Floor, document: KeyException, signer: str = "operator") -> None:
    folder = floor.deployment.trust / EXCEPTIONS
    folder.mkdir(exist_ok=True)
    (folder / "one.note").write_text(sign_document(document, ("operator", key(signer))))


@on_its_loop
async def test_an_operators_exception_lets_a_key_pass_for_its_time_and_stands_on_the_record(
    floor: Floor, good: Key
) -> None:
    heard: list[ConfigChanged] = []

    def hear(received: Received) -> None:
        heard.extend(e for e in received.events if isinstance(e, ConfigChanged) and e.name == "key-exception")

    console = await floor.desk.context("console")
    console.subscribe("control.config.custody", hear)
    console.open()
    await console.caught_up()
    floor.exchange.keys.put(msgspec.structs.replace(good, ips=()))
    lay(floor, exception(floor))
    await restarted(floor)
    await accepted(floor)
    await floor.until(lambda: heard)
    assert "KEY_NOT_IP_BOUND until" in heard[0].text
    assert "a new uplink" in heard[0].text
    # It is for that defect alone.
    floor.exchange.keys.put(msgspec.structs.replace(good, ips=(), permissions=frozenset({"read", "trade", "withdraw"})))
    await restarted(floor)
    await refused(floor)


@on_its_loop
async def test_an_exception_that_ends_while_its_key_is_used_ends_the_orders(floor: Floor, good: Key) -> None:
    floor.exchange.keys.put(msgspec.structs.replace(good, ips=()))
    await restarted(floor)
    lay(floor, exception(floor, until=time.time_ns() + 4 * 10**9))
    await restarted(floor)
    await accepted(floor)
    custody: Any = floor.running[floor.people["custody"].boot]
    await floor.until(lambda: not custody._check.live(time.time_ns()))
    await refused(floor)


@on_its_loop
@pytest.mark.parametrize(
    ("changed", "signer"),
    [
        ({"start": 0, "until": HOUR}, "operator"),
        ({"component": "portfolio"}, "operator"),
        ({"venue": "elsewhere"}, "operator"),
        ({"deployment": "another"}, "operator"),
        ({"defects": ("KEY_TOO_BROAD enableFutures",)}, "operator"),
        ({}, "somebody"),
    ],
)
async def test_an_exception_that_is_over_for_another_or_forged_is_none(
    floor: Floor, good: Key, changed: dict[str, Any], signer: str
) -> None:
    floor.exchange.keys.put(msgspec.structs.replace(good, ips=()))
    lay(floor, exception(floor, **changed), signer)
    await restarted(floor)
    await refused(floor)


@on_its_loop
async def test_an_exception_ends_and_is_for_thirty_days_at_most(floor: Floor) -> None:
    document, trust = exception(floor), floor.desk.trust
    note = sign_document(document, ("operator", key("operator")))
    assert open_key_exception(note, trust, document.until - 1) == document
    with pytest.raises(LeaseOver, match="KEY_EXCEPTION_OVER"):
        open_key_exception(note, trust, document.until)
    with pytest.raises(TallystickError, match="KEY_EXCEPTION"):
        exception(floor, start=0, until=MAX_EXCEPTION_NS + 1)


@on_its_loop
async def test_a_key_that_is_to_read_and_can_trade_is_refused(floor: Floor, good: Key) -> None:
    await restarted(floor)
    ctx, venue = floor.people["custody"], floor.deployment.config.venue
    custody: Any = floor.running[ctx.boot]
    tls = venues.client_tls(floor.deployment.venue_ca)
    check = key_check.KeyCheck(ctx, venues.adapter(venue.api), venue.host, "read", tls)
    with pytest.raises(Unverified, match="KEY_TOO_BROAD enableSpotAndMarginTrading"):
        await check.require_fit(good.api_key, custody._holder.signer())


async def test_an_account_is_followed_only_while_its_key_is_fit_and_with_the_new_one_after_a_change() -> None:
    followed: list[str] = []
    fit = False

    class Stream:
        def __init__(self, api_key: str, _: object) -> None:
            self._api_key = api_key

        async def run(self) -> None:
            followed.append(f"+{self._api_key}")
            try:
                await asyncio.Event().wait()
            finally:
                followed.append(f"-{self._api_key}")

    signer: Any = None
    stream = RenewableStream(Stream, "old", signer, lambda: fit)
    running = asyncio.create_task(stream.run())
    await asyncio.sleep(0.2)
    assert followed == []
    fit = True
    await until(lambda: followed == ["+old"])
    stream.use("new", signer)
    await until(lambda: followed == ["+old", "-old", "+new"])
    fit = False
    await until(lambda: followed[3:] == ["-new"])
    await end(running)
