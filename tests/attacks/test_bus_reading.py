"""A component with its real credentials tries to read what is not its own; and what its own reading looks like."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
from nats.aio.msg import Msg
from nats.errors import TimeoutError as NatsTimeout

from tests.support.bus import Connection, TestBus, running_bus

MINE = "order.intent.alpha.paper.XRP-ETH"
THEIRS = "order.intent.beta.paper.XRP-ETH"


@pytest.fixture
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestBus]:
    """A broker whose sequences start at 1."""
    with running_bus(tmp_path_factory.mktemp("bus")) as running:
        yield running


WAITING = {"no_wait": False, "expires": 5_000_000_000}


async def pull(client: Connection, subject: str, **asked: Any) -> tuple[list[Msg], dict[str, str]]:
    """The messages of one pull and the headers of the status that ended it."""
    inbox = client.new_inbox()
    answers = await client.subscribe(inbox)
    await client.publish(subject, json.dumps({"batch": 100, "no_wait": True} | asked).encode(), reply=inbox)
    messages: list[Msg] = []
    with contextlib.suppress(NatsTimeout):
        while True:
            message = await answers.next_msg(timeout=5)
            if message.headers and "Status" in message.headers:
                return messages, message.headers
            messages.append(message)
            if len(messages) == asked.get("batch"):
                break
    await answers.unsubscribe()
    return messages, {}


async def pull_all(client: Connection, subject: str, count: int) -> tuple[list[Msg], dict[str, str]]:
    """The first `count` messages and whatever is there besides: a durable hears of a message a moment after its writer."""
    first, _ = await pull(client, subject, batch=count, **WAITING)
    more, end = await pull(client, subject)
    return first + more, end


async def reset(client: Connection, subject: str, body: bytes) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads((await client.request(subject, body, timeout=2)).data)
    return answer


@pytest.mark.parametrize(
    ("component", "stream", "durable"),
    [
        ("strategy-alpha", "ORDERS", "strategy-beta"),
        ("strategy-alpha", "ORDERS", "gateway"),
        ("strategy-alpha", "GUARD", "audit"),
        ("custody", "ORDERS", "execution"),
        ("market-data", "ORDERS", "audit"),
        ("streams", "SIGNALS", "audit"),
        ("execution", "ORDERS", "portfolio"),
    ],
)
async def test_a_foreign_durable_is_neither_read_nor_moved(
    bus: TestBus, component: str, stream: str, durable: str
) -> None:
    async with bus.connected("root", component) as (root, attacker):
        info = f"$JS.API.CONSUMER.INFO.{stream}.{durable}"
        before = json.loads((await root.request(info)).data)["delivered"]
        for verb in ("MSG.NEXT", "RESET"):
            for prefix in ("$JS.API", "core.JS.API"):
                subject = f"{prefix}.CONSUMER.{verb}.{stream}.{durable}"
                await attacker.publish(subject, b'{"seq":1}', reply=attacker.new_inbox())
                assert await attacker.refused() == f'nats: permissions violation for publish to "{subject.lower()}"'
        assert json.loads((await root.request(info)).data)["delivered"] == before


@pytest.mark.parametrize(
    "subject",
    [
        "_INBOX_strategy-beta.>",
        "_INBOX.>",
        ">",
        "order.>",
        THEIRS,
        MINE,
        "$SYS.>",
        "$JS.EVENT.>",
        "_INBOX_strategy-alpha",
        "_R_.>",
    ],
)
async def test_a_foreign_inbox_or_subject_cannot_be_listened_to(bus: TestBus, subject: str) -> None:
    async with bus.connected("strategy-alpha", "strategy-beta", "gateway") as (attacker, victim, _):
        heard: list[Msg] = []

        async def listen(message: Msg) -> None:
            heard.append(message)

        await attacker.subscribe(subject, cb=listen)
        assert await attacker.refused() == f'nats: permissions violation for subscription to "{subject.lower()}"'
        await victim.request(THEIRS, b"private", timeout=2)
        await victim.request(bus.component("strategy-beta").reset_subject("ORDERS"), b'{"seq":1}', timeout=2)
        await attacker.flush()
        assert heard == []


async def test_a_queue_group_steals_nothing(bus: TestBus) -> None:
    async with bus.connected("strategy-alpha", "strategy-beta") as (attacker, victim):
        await attacker.subscribe("_INBOX_strategy-beta.*", queue="thieves")
        assert "permissions violation for subscription" in await attacker.refused()
        assert json.loads((await victim.request(THEIRS, b"x", timeout=2)).data)["stream"] == "ORDERS"


async def test_a_strategy_gets_its_own_orders_and_none_of_another(fresh: TestBus) -> None:
    async with fresh.connected("root", "strategy-alpha") as (root, alpha):
        for strategy in ("beta", "alpha"):
            for kind in ("position", "fill", "order.decision", "order.event", "order.intent"):
                await root.request(f"{kind}.{strategy}.paper.XRP-ETH", strategy.encode())
        messages, end = await pull_all(alpha, fresh.component("strategy-alpha").next_subject("ORDERS"), 4)
        assert [m.subject.rsplit(".", 3)[0] for m in messages] == [
            "position",
            "fill",
            "order.decision",
            "order.event",
        ]
        assert {m.data for m in messages} == {b"alpha"}
        assert end["Status"] == "404"


async def test_custody_gets_control_and_credentials_alone(fresh: TestBus) -> None:
    async with fresh.connected("root", "custody") as (root, custody):
        for subject in ("alert.x.high", "audit.checkpoint", "cred.gateway", "control.breaker.all"):
            await root.request(subject, b"x")
        messages, _ = await pull_all(custody, fresh.component("custody").next_subject("SECURITY"), 2)
        assert [m.subject for m in messages] == ["cred.gateway", "control.breaker.all"]


@pytest.mark.parametrize(
    ("component", "gets"),
    [
        ("execution", []),
        ("gateway", []),
        ("breaker", []),
        ("authority", []),
        ("console", []),
        ("custody", ["keymaster"]),
        ("portfolio", ["keymaster"]),
        ("keymaster", ["custody", "portfolio"]),
        ("audit", ["custody", "portfolio", "keymaster"]),
    ],
)
async def test_what_a_key_signs_about_itself_is_told_to_the_keymaster_and_the_record_alone(
    fresh: TestBus, component: str, gets: list[str]
) -> None:
    """It would be an answer to any question for a second, to execution, which knows the key's id."""
    async with fresh.connected("root", component) as (root, reader):
        for holder in ("custody", "portfolio", "keymaster"):
            await root.request(f"control.key.{holder}", b"signed")
        await root.request("cred.gateway", b"x")
        messages, _ = await pull_all(reader, fresh.component(component).next_subject("SECURITY"), len(gets) + 1)
        assert [m.subject for m in messages] == [*(f"control.key.{name}" for name in gets), "cred.gateway"]


# ---------------------------------------------------------------- the facts that infra/nats/README.md states


async def test_next_tells_subject_positions_and_what_is_pending(fresh: TestBus) -> None:
    async with fresh.connected("strategy-alpha", "gateway") as (writer, gateway):
        for i in range(3):
            await writer.request(MINE, b"%d" % i)
        messages, end = await pull(gateway, fresh.component("gateway").next_subject("ORDERS"), batch=10)
        assert [m.subject for m in messages] == [MINE] * 3
        replies = [m.reply.split(".") for m in messages]
        assert {len(r) for r in replies} == {9}
        assert [r[:5] + r[5:7] for r in replies] == [
            ["$JS", "ACK", "ORDERS", "gateway", "1", str(i), str(i)] for i in (1, 2, 3)
        ]
        assert [r[8] for r in replies] == ["2", "1", "0"]
        assert int(replies[0][7]) > 1_700_000_000_000_000_000
        assert (end["Status"], end["Description"]) == ("404", "No Messages")
        _, end = await pull(
            gateway, fresh.component("gateway").next_subject("ORDERS"), batch=10, no_wait=False, expires=50_000_000
        )
        assert (end["Status"], end["Nats-Pending-Messages"]) == ("408", "10")


async def test_reset_goes_where_it_is_told_and_to_a_hole_without_an_error(fresh: TestBus) -> None:
    async with fresh.connected("strategy-alpha", "gateway") as (writer, gateway):
        me = fresh.component("gateway")
        next_subject, reset_subject = me.next_subject("ORDERS"), me.reset_subject("ORDERS")

        async def after(body: bytes) -> list[str]:
            await reset(gateway, reset_subject, body)
            return [".".join(m.reply.split(".")[5:7]) for m in (await pull(gateway, next_subject))[0]]

        for i in range(6):
            await writer.request(MINE, b"%d" % i)
        answer = await reset(gateway, reset_subject, b'{"seq":5}')
        assert (answer["reset_seq"], answer["num_pending"]) == (5, 2)
        # stream sequence . consumer sequence: the latter starts again.
        assert await after(b'{"seq":5}') == ["5.1", "6.2"]
        # One past the end: what comes next is delivered.
        assert await after(b'{"seq":7}') == []
        await writer.request(MINE, b"7")
        # A durable hears of a message a moment after its writer.
        assert [m.data for m in (await pull(gateway, next_subject, batch=1, **WAITING))[0]] == [b"7"]
        # Far past the end: accepted, and then silence.
        answer = await reset(gateway, reset_subject, b'{"seq":1000}')
        assert (answer["reset_seq"], answer["num_pending"], "error" in answer) == (1000, 0, False)
        await writer.request(MINE, b"8")
        assert (await pull(gateway, next_subject))[0] == []
        # Zero or nothing: no rewind.
        await reset(gateway, reset_subject, b'{"seq":3}')
        await pull(gateway, next_subject, batch=1)
        assert (await reset(gateway, reset_subject, b'{"seq":0}'))["reset_seq"] == 4
        assert (await reset(gateway, reset_subject, b""))["reset_seq"] == 4
        for garbage in (b'{"seq":-1}', b"garbage", b'{"seq":"1"}'):
            assert (await reset(gateway, reset_subject, garbage))["error"]["err_code"] == 10025
        assert len((await pull(gateway, next_subject))[0]) == 5


async def test_reset_below_the_first_that_is_held_delivers_from_the_first(fresh: TestBus) -> None:
    async with fresh.connected("root", "market-data", "gateway") as (root, writer, gateway):
        for i in range(6):
            await writer.request("md.trade.paper.XRP-ETH", b"%d" % i)
        # MARKET is bounded: what its bounds drop looks like this.
        await root.request("$JS.API.STREAM.PURGE.MARKET", b'{"seq":4}')
        me = fresh.component("gateway")
        answer = await reset(gateway, me.reset_subject("MARKET"), b'{"seq":2}')
        assert (answer["reset_seq"], answer["num_pending"]) == (2, 3)
        assert [m.reply.split(".")[5] for m in (await pull(gateway, me.next_subject("MARKET")))[0]] == [
            "4",
            "5",
            "6",
        ]


async def test_a_waiting_pull_survives_a_reset(fresh: TestBus) -> None:
    async with fresh.connected("strategy-alpha", "gateway") as (writer, gateway):
        me = fresh.component("gateway")
        for i in range(3):
            await writer.request(MINE, b"%d" % i)
        await reset(gateway, me.reset_subject("ORDERS"), b'{"seq":4}')
        inbox = gateway.new_inbox()
        old = await gateway.subscribe(inbox)
        await gateway.publish(me.next_subject("ORDERS"), b'{"batch":9,"expires":2000000000}', reply=inbox)
        await gateway.flush()
        await reset(gateway, me.reset_subject("ORDERS"), b'{"seq":2}')
        assert (await old.next_msg(timeout=1)).data == b"1"


async def test_the_end_is_found_without_a_right_to_ask_for_it(fresh: TestBus) -> None:
    async with fresh.connected("root", "strategy-alpha", "gateway") as (root, writer, gateway):
        me = fresh.component("gateway")

        async def pending(seq: int) -> int:
            return int((await reset(gateway, me.reset_subject("ORDERS"), b'{"seq":%d}' % seq))["num_pending"])

        for i in range(11):
            await writer.request(MINE, b"%d" % i)
        # Not of the gateway's filters: the end for it is before them.
        await root.request("balance.paper.ETH", b"x")
        high = 1
        while await pending(high):
            high *= 2
        low = high // 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if await pending(middle) else (low, middle)
        assert high == 12
        await pending(high)
        await writer.request(MINE, b"new")
        assert [m.data for m in (await pull(gateway, me.next_subject("ORDERS")))[0]] == [b"new"]
