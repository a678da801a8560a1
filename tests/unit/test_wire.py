"""The broker's protocol against a broker that says anything: whole or in pieces, nothing of it breaks or fills us."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystick.runtime.bus import wire as module
from tallystick.runtime.bus.wire import BrokerError, Message, Wire, WireError, frame

HEADERS = b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 7\r\n\r\n"
SAID = b"".join(
    (
        b"MSG a.b 1 5\r\nhello\r\n",
        b"MSG a.b 1 reply.to 0\r\n\r\n",
        b"+OK\r\n",
        b"HMSG a.b 1 $JS.ACK.x %d %d\r\n%b\r\n\r\n" % (len(HEADERS), len(HEADERS) + 2, HEADERS),
        b"PING\r\n",
        b"MSG a.b 2 3\r\nnot\r\n",
        b"MSG a.b 1 4\r\n\r\n\r\n\r\n",
    )
)
HEARD = [
    ("a.b", "", b"hello", {}),
    ("a.b", "reply.to", b"", {}),
    ("a.b", "$JS.ACK.x", b"\r\n", {"Status": "100", "Description": "Idle Heartbeat", "Nats-Last-Consumer": "7"}),
    ("a.b", "", b"\r\n\r\n", {}),
]


class Transport:
    """Takes what is written; nobody is at the other end."""

    def __init__(self) -> None:
        self.written = b""
        self.gone = False

    def write(self, data: bytes) -> None:
        self.written += data

    def abort(self) -> None:
        self.gone = True

    def is_closing(self) -> bool:
        return self.gone

    close = abort


class Line:
    """A wire that is logged in, and what it was told."""

    def __init__(self) -> None:
        self.refused: list[str] = []
        self.lost = 0
        self.heard: list[tuple[str, str, bytes, dict[str, str]]] = []
        self.transport = Transport()
        self.wire = Wire(lambda exc: self.refused.append(str(exc)), self._on_lost)
        self.wire._transport = self.transport
        self.wire._logged_in.set_result(None)
        self.wire.subscribe("a.>", self._on_message)

    def _on_lost(self) -> None:
        self.lost += 1

    def _on_message(self, message: Message) -> None:
        self.heard.append((message.subject, message.reply, message.data, message.headers))


def alone(work: Any) -> None:
    asyncio.run(work)


@given(st.lists(st.integers(0, len(SAID)), max_size=12))
def test_what_is_said_is_heard_the_same_in_whatever_pieces_it_arrives(cuts: list[int]) -> None:
    async def say() -> None:
        line, places = Line(), sorted({0, *cuts, len(SAID)})
        for begin, end in itertools.pairwise(places):
            line.wire.take(SAID[begin:end])
        assert line.heard == HEARD
        assert line.transport.written.endswith(b"PONG\r\n")
        assert (line.lost, line.refused) == (0, [])

    alone(say())


def test_what_is_said_byte_by_byte_is_heard() -> None:
    async def say() -> None:
        line = Line()
        for at in range(len(SAID)):
            line.wire.take(SAID[at : at + 1])
        assert line.heard == HEARD

    alone(say())


NONSENSE = [
    b"HELLO\r\n",
    b"\r\n",
    b"MSG\r\n",
    b"MSG a 1 x\r\n",
    b"MSG a 1 -5\r\n",
    b"MSG a one 0\r\n\r\n",
    b"MSG a 1 99999999999\r\n",
    b"HMSG a 1 9 5\r\n",
    b"HMSG a 1 -1 5\r\n",
    b"MSG \xff\xfe 1 0\r\n\r\n",
    b"INFO {\r\n",
    b"M" * (module.MAX_LINE + 1),
]


@pytest.mark.parametrize("said", NONSENSE, ids=lambda said: repr(said[:24]))
def test_nonsense_ends_the_connection_and_nothing_else(said: bytes) -> None:
    async def say() -> None:
        line = Line()
        line.wire._info = asyncio.get_running_loop().create_future()
        asked = asyncio.ensure_future(line.wire.flush())
        await asyncio.sleep(0)
        line.wire.take(said)
        assert line.transport.gone
        assert (line.lost, line.heard, line.refused) == (1, [], [])
        with pytest.raises(WireError):
            await asked
        with pytest.raises(WireError):
            line.wire.send("a", b"")
        line.wire.take(b"MSG a.b 1 5\r\nhello\r\n")
        line.wire.connection_lost(None)
        assert (line.lost, line.heard) == (1, [])

    alone(say())


@given(st.binary(max_size=200))
def test_no_bytes_raise(said: bytes) -> None:
    async def say() -> None:
        line = Line()
        line.wire.take(said)
        line.wire.take(b"\r\n" + said)

    alone(say())


def test_an_unsubscribed_message_is_dropped_and_unsubscribing_twice_is_nothing() -> None:
    async def say() -> None:
        line = Line()
        line.wire.unsubscribe(1)
        line.wire.unsubscribe(1)
        line.wire.take(b"MSG a.b 1 5\r\nhello\r\n")
        assert line.heard == []
        assert line.transport.written.count(b"UNSUB 1\r\n") == 1

    alone(say())


def test_a_refusal_is_told_and_leaves_the_connection_open() -> None:
    async def say() -> None:
        line = Line()
        line.wire.take(b"-ERR 'Permissions Violation for Publish to \"x\"'\r\nMSG a.b 1 5\r\nhello\r\n")
        assert line.refused == ['Permissions Violation for Publish to "x"']
        assert len(line.heard) == 1
        assert not line.lost

    alone(say())


async def test_a_broker_that_answers_no_ping_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PING_S", 0.05)
    line = Line()
    line.wire.take(b"PONG\r\n" * 3)  # that nobody asked for
    await asyncio.wait_for(line.wire.keep_alive(), 3)
    assert line.transport.gone
    assert line.lost == 1


def test_who_writes_waits_while_the_socket_takes_no_more_and_goes_on_when_it_is_gone() -> None:
    async def say() -> None:
        line = Line()
        line.wire.pause_writing()
        waiting = asyncio.ensure_future(line.wire.drained())
        await asyncio.sleep(0.01)
        assert not waiting.done()
        line.wire.resume_writing()
        await waiting
        line.wire.pause_writing()
        waiting = asyncio.ensure_future(line.wire.drained())
        await asyncio.sleep(0.01)
        line.wire.connection_lost(ConnectionResetError())
        await waiting
        with pytest.raises(WireError):
            line.wire.send("a", b"")

    alone(say())


@pytest.mark.parametrize(
    ("subject", "reply", "headers"),
    [
        ("a b", "", None),
        ("a\r\nPUB b 0", "", None),
        ("", "", None),
        ("a", "b\r\n", None),
        ("a", "", {"x": "1\r\nNats-Rollup: all"}),
        ("a", "", {"x:y": "1"}),
        ("a", "", {"x y": "1"}),
        ("a", "", {"": "1"}),
    ],
)
def test_nothing_is_written_that_reads_as_something_else(
    subject: str, reply: str, headers: dict[str, str] | None
) -> None:
    with pytest.raises(WireError):
        frame(subject, b"", reply, headers)


def test_a_frame_says_what_it_should() -> None:
    assert frame("a", b"xy") == b"PUB a 2\r\nxy\r\n"
    assert frame("a", b"xy", "r") == b"PUB a r 2\r\nxy\r\n"
    head = b"NATS/1.0\r\nNats-Msg-Id: 1\r\n\r\n"
    assert frame("a", b"xy", "r", {"Nats-Msg-Id": "1"}) == b"HPUB a r %d %d\r\n%bxy\r\n" % (
        len(head),
        len(head) + 2,
        head,
    )


def test_a_refusal_is_an_error_of_the_connection() -> None:
    assert issubclass(BrokerError, OSError)
