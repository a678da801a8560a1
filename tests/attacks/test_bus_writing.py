"""A component with its real credentials tries to write what is not its own.

Every attack goes to the real broker; each test says how it is refused and that no stream holds anything of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nats.errors import TimeoutError as NatsTimeout

from tallystick.schemas.errors import TallystickError
from tallystick.schemas.seal import Verifier
from tests.support.bus import Connection, TestBus
from tests.support.world import trust_root

MINE = "order.intent.alpha.paper.XRP-ETH"
THEIRS = "order.intent.beta.paper.XRP-ETH"
# Long enough for the broker to store what it would store: it answers within a millisecond.
SETTLE_S = 0.05


@contextlib.asynccontextmanager
async def nothing_stored(bus: TestBus, root: Connection, *, but: dict[str, int] | None = None) -> AsyncIterator[None]:
    """No stream changes inside; `but` names streams that get so many messages of the attacker's own subject."""
    before = await bus.stored(root)
    yield
    await asyncio.sleep(SETTLE_S)
    after = await bus.stored(root)
    allowed = but or {}
    assert after == {s: (m + allowed.get(s, 0), q + allowed.get(s, 0)) for s, (m, q) in before.items()}


async def _last(root: Connection, stream: str) -> tuple[str, int]:
    """The newest message's subject and its sequence."""
    info = json.loads((await root.request(f"$JS.API.STREAM.INFO.{stream}")).data)
    seq = info["state"]["last_seq"]
    body = json.dumps({"seq": seq}).encode()
    message = json.loads((await root.request(f"$JS.API.STREAM.MSG.GET.{stream}", body)).data)["message"]
    return message["subject"], seq


FOREIGN = [
    ("strategy-alpha", THEIRS),
    ("strategy-alpha", "signal.beta.paper.XRP-ETH"),
    ("strategy-alpha", "order.decision.alpha.paper.XRP-ETH"),
    ("strategy-alpha", "order.event.alpha.paper.XRP-ETH"),
    ("strategy-alpha", "fill.alpha.paper.XRP-ETH"),
    ("strategy-alpha", "position.alpha.paper.XRP-ETH"),
    ("strategy-alpha", "control.breaker.all"),
    ("strategy-alpha", "guard.strategy-beta"),
    ("strategy-alpha", "order.intent.alpha.paper"),
    ("strategy-alpha", "order.intent.alpha.paper.XRP-ETH.more"),
    ("gateway", MINE),
    ("gateway", "order.event.alpha.paper.XRP-ETH"),
    ("gateway", "control.arm.execution"),
    ("execution", "order.decision.alpha.paper.XRP-ETH"),
    ("market-data", "alert.feed.high"),
    ("custody", "order.event.alpha.paper.XRP-ETH"),
    ("custody", "control.config.gateway"),
    ("custody", "control.key.keymaster"),
    ("execution", "control.key.custody"),
    ("streams", "control.breaker.all"),
    ("breaker", "alert.breaker.high"),
    ("audit", "audit.cosignature.witness"),
    ("audit", "order.decision.alpha.paper.XRP-ETH"),
    ("paper-exchange", "fill.alpha.paper.XRP-ETH"),
    ("portfolio", "cred.portfolio"),
    ("authority", "audit.checkpoint"),
]


@pytest.mark.parametrize(("component", "subject"), FOREIGN)
async def test_a_foreign_subject_is_refused(bus: TestBus, component: str, subject: str) -> None:
    async with bus.connected("root", component) as (root, attacker):
        async with nothing_stored(bus, root):
            with pytest.raises(NatsTimeout):
                await attacker.request(subject, b"forged", timeout=0.05)
        assert await attacker.refused() == f'nats: permissions violation for publish to "{subject.lower()}"'


ADMINISTRATION = [
    "STREAM.INFO.ORDERS",
    "STREAM.NAMES",
    "STREAM.LIST",
    "STREAM.CREATE.EVIL",
    "STREAM.UPDATE.ORDERS",
    "STREAM.DELETE.ORDERS",
    "STREAM.PURGE.ORDERS",
    "STREAM.MSG.DELETE.ORDERS",
    "STREAM.MSG.GET.ORDERS",
    "STREAM.SNAPSHOT.ORDERS",
    "STREAM.RESTORE.ORDERS",
    "DIRECT.GET.ORDERS",
    "DIRECT.GET.ORDERS.order.intent.beta.paper.XRP-ETH",
    "CONSUMER.CREATE.ORDERS.evil",
    "CONSUMER.CREATE.ORDERS.strategy-alpha",
    "CONSUMER.CREATE.ORDERS.evil.order.intent.beta.>",
    "CONSUMER.DURABLE.CREATE.ORDERS.evil",
    "CONSUMER.DELETE.ORDERS.gateway",
    "CONSUMER.PAUSE.ORDERS.gateway",
    "CONSUMER.INFO.ORDERS.strategy-alpha",
    "CONSUMER.NAMES.ORDERS",
    "INFO",
]


@pytest.mark.parametrize("component", ["strategy-alpha", "audit", "streams"])
async def test_streams_and_durables_are_out_of_reach(bus: TestBus, component: str) -> None:
    async with bus.connected("root", component) as (root, attacker):
        before = await bus.stored(root)
        for call in ADMINISTRATION:
            subject = f"$JS.API.{call}"
            await attacker.publish(subject, b"{}", reply=attacker.new_inbox())
            assert await attacker.refused() == f'nats: permissions violation for publish to "{subject.lower()}"'
        await asyncio.sleep(SETTLE_S)
        assert await bus.stored(root) == before
        durables = json.loads((await root.request("$JS.API.CONSUMER.NAMES.ORDERS", b"{}")).data)["consumers"]
        assert sorted(durables) == sorted(
            ["audit-end", *(n for n, c in bus.bus.components.items() if "ORDERS" in c.reads)]
        )


async def test_a_reply_subject_on_a_publish_writes_nothing_foreign(bus: TestBus) -> None:
    async with bus.connected("root", "strategy-alpha") as (root, attacker):
        for reply in (THEIRS, MINE, "order.decision.alpha.paper.XRP-ETH", "alert.x.high"):
            # The signal is the attacker's own and is stored; its acknowledgement reaches no other account.
            async with nothing_stored(bus, root, but={"SIGNALS": 1}):
                await attacker.publish("signal.alpha.paper.XRP-ETH", b"reflect", reply=reply)
        assert attacker.refusals == []


@pytest.mark.parametrize(
    ("component", "foreign"),
    [
        ("strategy-alpha", "position.beta.paper.XRP-ETH"),
        ("observer-watch", "order.intent.alpha.paper.XRP-ETH"),
        ("console", "guard.gateway"),
        ("custody", "control.config.gateway"),
        ("audit", "audit.checkpoint"),
    ],
)
async def test_a_reply_subject_on_msg_next_writes_nothing(bus: TestBus, component: str, foreign: str) -> None:
    async with bus.connected("root", component) as (root, attacker):
        me = bus.component(component)
        await root.request("position.alpha.paper.XRP-ETH", b"sealed by portfolio")
        await root.request("guard.gateway", b"sealed by gateway")
        await root.request("control.breaker.all", b"sealed by breaker")
        own = [pattern.replace("*", "alpha") for pattern in me.publishes]
        for stream in me.reads:
            pull, rewind = me.next_subject(stream), me.reset_subject(stream)
            async with nothing_stored(bus, root):
                for reply in (*own, foreign, THEIRS):
                    # Messages, the status that ends the pull, and the answer to the rewind itself.
                    await attacker.publish(rewind, b'{"seq":1}', reply=reply)
                    await attacker.publish(pull, b'{"batch":10,"no_wait":true}', reply=reply)
        assert attacker.refusals == []


async def test_an_acknowledgement_is_stored_nowhere(bus: TestBus) -> None:
    async with bus.connected("root", "observer-watch") as (root, attacker):
        for reply in ("guard.observer-watch", "dead.observer-watch", "guard.gateway"):
            async with nothing_stored(bus, root, but={"GUARD": 1}):
                await attacker.publish("guard.observer-watch", b"mine", reply=reply)


async def test_what_the_detectors_account_reflects_is_read_by_audit(bus: TestBus) -> None:
    # Its own JetStream answers on patterns too, so its own subjects are imported literally, and broker's answers
    # with them as a reply subject are stored: others' messages, under their own subjects, in a foreign stream.
    async with bus.connected("root", "streams", "audit") as (root, attacker, audit):
        await root.request("fill.alpha.paper.XRP-ETH", b"sealed by portfolio")
        me, reader = bus.component("streams"), bus.component("audit")
        before = (await bus.stored(root))["GUARD"][1]
        await attacker.request(me.reset_subject("ORDERS"), b'{"seq":1}')
        await attacker.publish(me.next_subject("ORDERS"), b'{"batch":1,"no_wait":true}', reply="guard.streams")
        await asyncio.sleep(SETTLE_S)
        last = (await bus.stored(root))["GUARD"][1]
        assert last > before, "closed at the broker by now: import these subjects by a pattern, as everybody's"
        # No message of GUARD is missing from what audit reads, whatever its subject.
        await audit.request(reader.reset_subject("GUARD"), b'{"seq":%d}' % (before + 1))
        inbox = audit.new_inbox()
        answers = await audit.subscribe(inbox)
        await audit.publish(reader.next_subject("GUARD"), b'{"batch":100,"no_wait":true}', reply=inbox)
        first = await answers.next_msg(timeout=2)
        assert int(first.reply.split(".")[5]) == before + 1
        assert not first.subject.startswith("guard.")


async def test_a_reply_subject_on_direct_get_writes_unsealed_bytes_to_own_subjects_alone(bus: TestBus) -> None:
    async with bus.connected("root", "streams") as (root, attacker):
        await attacker.request("state.key", b"chosen bytes")
        get = "$JS.API.DIRECT.GET.STATE.state.key"
        for reply in ("control.breaker.all", "order.decision.alpha.paper.XRP-ETH", "guard.audit"):
            async with nothing_stored(bus, root):
                await attacker.publish(get, b"", reply=reply)
        # The only component with a direct get reads its own JetStream with it; what it reflects is on a subject that
        # it may write anyway, and no seal of anybody.
        async with nothing_stored(bus, root, but={"SECURITY": 1}):
            await attacker.publish(get, b"", reply="alert.intent-rate.high")
        assert (await _last(root, "SECURITY"))[0] == "alert.intent-rate.high"
        with pytest.raises(TallystickError):
            Verifier(trust_root()).open("alert.intent-rate.high", "SECURITY", b"chosen bytes")


async def test_two_strategies_share_nothing(bus: TestBus) -> None:
    async with bus.connected("root", "strategy-alpha", "strategy-beta") as (root, alpha, beta):
        seen: list[bytes] = []

        async def listen(message: object) -> None:
            seen.append(b"message")

        await beta.subscribe("_INBOX_strategy-beta.x", cb=listen)
        await beta.flush()
        async with nothing_stored(bus, root, but={"ORDERS": 1}):
            await alpha.publish(MINE, b"to beta's inbox?", reply="_INBOX_strategy-beta.x")
            await alpha.publish("_INBOX_strategy-beta.x", b"direct")
        assert await alpha.refused() == 'nats: permissions violation for publish to "_inbox_strategy-beta.x"'
        assert seen == []


HEADERS = [
    ({"Nats-Rollup": "all"}, 10111, "rollup not permitted"),
    ({"Nats-Rollup": "sub"}, 10111, "rollup not permitted"),
    ({"Nats-TTL": "1s"}, 10166, "per-message TTL is disabled"),
    ({"Nats-Schedule": "@every 1s", "Nats-Schedule-Target": THEIRS}, 10188, "message schedules is disabled"),
    ({"Nats-Incr": "+1"}, 10168, "message counters is disabled"),
    ({"Nats-Batch-Id": "b", "Nats-Batch-Sequence": "1", "Nats-Batch-Commit": "1"}, 10174, "atomic publish is disabled"),
    ({"Nats-Stream-Source": "MARKET 1 > >"}, 10227, "message stream source header is not allowed"),
    ({"Nats-Expected-Stream": "SECURITY"}, 10060, "expected stream does not match"),
    ({"Nats-Expected-Last-Sequence": "1000000"}, 10071, "wrong last sequence"),
    ({"Nats-Expected-Last-Subject-Sequence": "1000000"}, 10071, "wrong last sequence"),
    ({"Nats-Expected-Last-Msg-Id": "x"}, 10070, "wrong last msg ID"),
]


@pytest.mark.parametrize(("headers", "code", "says"), HEADERS)
async def test_a_header_that_commands_the_stream_is_refused(
    bus: TestBus, headers: dict[str, str], code: int, says: str
) -> None:
    async with bus.connected("root", "strategy-alpha") as (root, attacker), nothing_stored(bus, root):
        answer = json.loads((await attacker.request(MINE, b"x", headers=headers)).data)
        assert answer["error"]["err_code"] == code
        assert answer["error"]["description"].startswith(says)


async def test_an_expectation_tells_when_others_wrote_and_not_what(bus: TestBus) -> None:
    # No account can be kept from this: the broker compares any subject of the stream, and says the position it found.
    async with bus.connected("root", "strategy-alpha", "strategy-beta") as (root, attacker, victim):
        asked = {
            "Nats-Expected-Last-Subject-Sequence": "1000000",
            "Nats-Expected-Last-Subject-Sequence-Subject": THEIRS,
        }
        position = json.loads((await victim.request(THEIRS, b"a secret price")).data)["seq"]
        async with nothing_stored(bus, root):
            answer = (await attacker.request(MINE, b"x", headers=asked)).data
            # Of other streams, which hold no subject of his, it tells nothing.
            other = (await attacker.request(MINE, b"x", headers=asked | {next(reversed(asked)): "control.>"})).data
        assert json.loads(answer)["error"] == {
            "code": 400,
            "err_code": 10071,
            "description": f"wrong last sequence: {position}",
        }
        assert json.loads(other)["error"]["description"] == "wrong last sequence: 0"


@pytest.mark.parametrize(
    "name", ["Nats-Subject", "Nats-Marker-Reason", "KV-Operation", "Nats-Required-Api-Level", "Nats-Sequence"]
)
async def test_a_header_that_lies_to_readers_moves_nothing(bus: TestBus, name: str) -> None:
    async with bus.connected("root", "strategy-alpha") as (root, attacker):
        # Stored as what it is, on the attacker's own subject: headers prove nothing to a verifier.
        async with nothing_stored(bus, root, but={"ORDERS": 1}):
            await attacker.request(MINE, b"x", headers={name: THEIRS})
        assert (await _last(root, "ORDERS"))[0] == MINE


async def test_a_trace_goes_nowhere_but_to_own_subjects(bus: TestBus) -> None:
    async with bus.connected("root", "strategy-alpha") as (root, attacker), nothing_stored(bus, root):
        for dest in (THEIRS, "alert.x.high", "guard.gateway", "_INBOX_gateway.x"):
            await attacker.publish(MINE, b"x", headers={"Nats-Trace-Dest": dest})
            assert await attacker.refused() == f'nats: permissions violation for publish to "{dest.lower()}"'


async def test_fast_ingest_is_refused(bus: TestBus) -> None:
    async with bus.connected("root", "strategy-alpha") as (root, attacker), nothing_stored(bus, root):
        inbox = attacker.new_inbox()
        answers = await attacker.subscribe(f"{inbox}.>")
        await attacker.publish(MINE, b"x", reply=f"{inbox}.u.500.fail.1.0.$FI")
        answer = json.loads((await answers.next_msg(timeout=2)).data)
        assert answer["error"]["err_code"] == 10205


async def test_a_guessed_message_id_suppresses_and_the_victim_is_told(bus: TestBus) -> None:
    async with bus.connected("root", "strategy-alpha", "strategy-beta") as (root, attacker, victim):
        guessed = {"Nats-Msg-Id": "intent-1"}
        async with nothing_stored(bus, root, but={"ORDERS": 1}):
            mine = json.loads((await attacker.request(MINE, b"first", headers=guessed)).data)
            theirs = json.loads((await victim.request(THEIRS, b"suppressed", headers=guessed)).data)
        # `duplicate` at a first attempt is the alarm: ids are 16 random bytes because of this.
        assert theirs == {"stream": "ORDERS", "seq": mine["seq"], "duplicate": True}


async def test_an_id_on_a_freely_writable_subject_cannot_suppress_an_alert(bus: TestBus) -> None:
    async with bus.connected("root", "strategy-alpha", "streams") as (root, attacker, victim):
        future = {"Nats-Msg-Id": "streams:intent-rate:17"}
        for subject in ("guard.strategy-alpha", "dead.strategy-alpha", "signal.alpha.paper.XRP-ETH", MINE):
            await attacker.request(subject, b"x", headers=future)
        async with nothing_stored(bus, root, but={"SECURITY": 1}):
            answer = json.loads((await victim.request("alert.intent-rate.high", b"alert", headers=future)).data)
        assert "duplicate" not in answer
        # Only these can write to the stream that holds alerts.
        writers = {n for n, c in bus.bus.components.items() if any(_security(p) for p in c.publishes)}
        assert writers == {
            "authority", "breaker", "custody", "gateway", "execution", "streams", "audit", "portfolio", "keymaster",
        }  # fmt: skip


def _security(pattern: str) -> bool:
    return pattern.split(".", maxsplit=1)[0] in ("cred", "control", "alert", "audit")


async def test_nobody_crowds_out_another_ones_heartbeats(bus: TestBus) -> None:
    async with bus.connected("root") as (root,):
        config = json.loads((await root.request("$JS.API.STREAM.INFO.GUARD")).data)["config"]
        assert (config["max_msgs"], config["max_bytes"]) == (-1, -1)
        assert config["max_msgs_per_subject"] == bus.bus.streams["GUARD"].max_per_subject > 0


async def test_what_is_locked_stays_even_for_an_insider_of_core(bus: TestBus) -> None:
    async with bus.connected("root", "strategy-alpha") as (root, writer):
        await writer.request(MINE, b"evidence")
        async with nothing_stored(bus, root):
            for call, body in (("STREAM.PURGE", {}), ("STREAM.MSG.DELETE", {"seq": 1})):
                answer = json.loads((await root.request(f"$JS.API.{call}.ORDERS", json.dumps(body).encode())).data)
                assert answer["error"]["code"] in (400, 500)
                assert "not permitted" in answer["error"]["description"]


async def test_the_administrator_deletes_and_purges_nothing(bus: TestBus) -> None:
    async with bus.connected("root", "admin") as (root, admin), nothing_stored(bus, root):
        for call in ("DELETE.ORDERS", "PURGE.MARKET", "MSG.DELETE.MARKET", "MSG.GET.ORDERS", "CREATE.EVIL"):
            await admin.publish(f"$JS.API.STREAM.{call}", b"{}", reply=admin.new_inbox())
            assert "permissions violation for publish" in await admin.refused()
        await admin.publish(MINE, b"x")
        assert "permissions violation for publish" in await admin.refused()


async def test_the_store_on_disk_is_not_readable(bus: TestBus, tmp_path: Path) -> None:
    async with bus.connected("strategy-alpha") as (writer,):
        await writer.request(MINE, b"a needle in the store")
    files = [f for f in (bus.folder / "jetstream").rglob("*") if f.is_file()]
    blocks = [f.read_bytes() for f in files]
    assert any(f.suffix == ".blk" and data for f, data in zip(files, blocks, strict=True))
    assert not any(b"a needle in the store" in data or b"XRP-ETH" in data for data in blocks)
