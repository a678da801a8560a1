"""The signing socket: who may connect, what a frame may be, and what a bad one costs the good ones."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tallystick.components.execution.custody import CustodyClient, NotSigned
from tallystick.runtime import unix_socket
from tallystick.runtime.bus.tasks import Tasks
from tallystick.schemas import signing
from tallystick.schemas.errors import Malformed
from tests.support.crowd import crowd
from tests.support.custody import Desk


@asynccontextmanager
async def serving(folder: Path, *uids: int) -> AsyncIterator[tuple[Desk, Path]]:
    desk = Desk(folder)
    desk.server._allowed_uids = frozenset(uids or (os.geteuid(),))
    path = folder / "custody.sock"
    await desk.server.start(path)
    try:
        yield desk, path
    finally:
        await desk.server.stop()


def status(number: int) -> signing.StatusRequest:
    return signing.StatusRequest(id=number)


async def send(path: Path, data: bytes) -> bytes:
    """Everything that comes back until the other side closes."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    try:
        writer.write(data)
        writer.write_eof()
        return await reader.read()
    except (ConnectionResetError, BrokenPipeError):  # closed before it was read
        return b""
    finally:
        writer.close()


async def test_another_users_connection_is_closed_unread(tmp_path: Path) -> None:
    async with serving(tmp_path, os.geteuid() + 1) as (desk, path):
        assert await send(path, signing.encode_frame(status(1))) == b""
        assert desk.refusals.counts["PEER"] == 1


async def test_the_socket_is_its_users_alone(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, path):
        assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "frame",
    [
        struct.pack(">I", signing.MAX_FRAME + 1),
        struct.pack(">I", 0xFFFFFFFF),
        struct.pack(">I", 0),
        struct.pack(">I", 3) + b"\xc1\xc1\xc1",
        struct.pack(">I", 9) + msgspec.msgpack.encode(["status"])[:9].ljust(9, b"\x00"),
        signing.encode_frame(status(1))[:-1] + b"\xcc",
    ],
    ids=["oversize", "four gigabytes", "empty", "not msgpack", "no id", "torn"],
)
async def test_a_bad_frame_ends_its_connection_and_nobody_elses(tmp_path: Path, frame: bytes) -> None:
    async with serving(tmp_path) as (_, path):
        signer = CustodyClient(path, Tasks())
        await signer.status()
        assert await send(path, frame + signing.encode_frame(status(2))) == b""
        assert (await signer.status()).component == "custody"
        await signer.close()


def test_a_longer_encoding_of_the_same_request_is_refused() -> None:
    plain = signing.encode_frame(status(1))[4:]
    assert plain == b"\x92\xa6status\x01"
    for other in (b"\x92\xa6status\xcc\x01", b"\xdc\x00\x02\xa6status\x01", b"\x92\xd9\x06status\x01"):
        with pytest.raises(Malformed, match="FRAME_CANONICAL"):
            signing.decode_request(other)


@pytest.mark.parametrize(
    "frame",
    [
        ["status", 1, "more"],
        ["status", 1.0],
        ["status", "1"],
        ["order", 1, b"short", "s", b""],
        ["sign", 1, b"anything"],
        ["withdraw", 1, "paper", "ETH", "1", "0xabc"],
        ["cancel", 1, "paper", "XRP/ETH"],
        {"op": "status", "id": 1},
    ],
)
def test_what_is_no_request_of_the_protocol_is_refused(frame: object) -> None:
    with pytest.raises(Malformed, match="FRAME"):
        signing.decode_request(msgspec.msgpack.encode(frame))


@settings(max_examples=100)
@given(st.binary(max_size=200))
def test_no_bytes_break_the_parser(data: bytes) -> None:
    for decode in (signing.decode_request, signing.decode_reply):
        try:
            frame = decode(data)
        except Malformed:
            continue
        assert signing.encode_frame(frame)[4:] == data


async def test_no_number_of_connections_keeps_execution_out(tmp_path: Path) -> None:
    async with serving(tmp_path) as (desk, path):
        signer = CustodyClient(path, Tasks())
        await signer.status()
        async with crowd(path, 4, 10):
            for _ in range(10):
                assert (await signer.status()).component == "custody"
                newcomer = CustodyClient(path, Tasks())
                assert (await newcomer.status()).component == "custody"
                await newcomer.close()
        assert desk.refusals.counts["PEER"] > 0
        await signer.close()


async def test_who_says_nothing_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unix_socket, "FIRST_S", 0.05)
    async with serving(tmp_path) as (_, path):
        reader, writer = await asyncio.open_unix_connection(str(path))
        assert await asyncio.wait_for(reader.read(), 2) == b""
        writer.close()
        signer = CustodyClient(path, Tasks())
        await signer.status()
        await asyncio.sleep(0.2)
        # Who has spoken may be silent.
        assert (await signer.status()).component == "custody"
        await signer.close()


async def test_connections_that_ask_without_pause_delay_nobody(tmp_path: Path) -> None:
    """What lay in the buffer was answered at a stretch: two such connections delayed an answer by 19 s."""
    async with serving(tmp_path) as (_, path):
        signer = CustodyClient(path, Tasks())
        await signer.status()
        flood = b"".join(signing.encode_frame(status(n)) for n in range(50_000))
        async with crowd(path, 2, 1, flood):
            await asyncio.sleep(0.3)
            slowest = 0.0
            for _ in range(20):
                began = time.monotonic()
                await signer.status()
                slowest = max(slowest, time.monotonic() - began)
        assert slowest < 0.5
        await signer.close()


async def test_requests_are_answered_in_order_over_one_connection(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, path):
        signer = CustodyClient(path, Tasks())
        await signer.status()

        def cancel(number: int) -> signing.Request:
            return signing.SignCancelAll(id=number, venue="paper", symbol="XRP/ETH")

        replies = await asyncio.gather(*(signer.sign(cancel) for _ in range(50)))
        assert [reply.id for reply in replies] == list(range(2, 52))
        await signer.close()


async def test_execution_finds_custody_again_after_its_restart(tmp_path: Path) -> None:
    signer = CustodyClient(tmp_path / "custody.sock", Tasks())
    with pytest.raises(NotSigned, match="CUSTODY_AWAY"):
        await signer.status()
    for _ in range(2):
        async with serving(tmp_path):
            assert (await signer.status()).component == "custody"
        with pytest.raises(NotSigned, match="CUSTODY_AWAY"):
            await signer.status()
    await signer.close()


async def test_a_refusal_says_code_and_cause(tmp_path: Path) -> None:
    async with serving(tmp_path) as (desk, path):
        signer = CustodyClient(path, Tasks())
        request = desk.request(desk.decision(permit=desk.permit(audience=bytes(16))))
        with pytest.raises(NotSigned, match="PERMIT_AUDIENCE: for boot 0000"):
            await signer.sign(lambda number: msgspec.structs.replace(request, id=number))
        await signer.close()


async def test_a_false_custody_that_answers_out_of_order_signs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "custody.sock"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(signing.encode_frame(signing.Refused(id=99, code="X", text="")))

    server = await asyncio.start_unix_server(serve, str(path))
    signer = CustodyClient(path, Tasks())
    with pytest.raises(NotSigned, match="reply 99"):
        await signer.status()
    await signer.close()
    server.close()


async def test_a_dead_predecessors_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "custody.sock"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()

    async with serving(tmp_path):
        signer = CustodyClient(path, Tasks())
        await signer.status()
        await signer.close()
