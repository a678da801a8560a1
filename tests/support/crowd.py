"""Peers of a Unix socket that want all of it: processes of our own user, each with connections that stay open."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path

# Reads the frames to send from stdin; says that it is there; connects again what was closed.
_PEER = """
import selectors, socket, sys
path, count = sys.argv[1], int(sys.argv[2])
said = sys.stdin.buffer.read()
chooser = selectors.DefaultSelector()
def enter():
    peer = socket.socket(socket.AF_UNIX)
    peer.connect(path)
    peer.setblocking(False)
    wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if said else 0)
    chooser.register(peer, wanted, {"left": memoryview(said)})
for _ in range(count):
    enter()
print("in", flush=True)
while True:
    for key, mask in chooser.select():
        try:
            if mask & selectors.EVENT_WRITE:
                sent = key.fileobj.send(key.data["left"])
                key.data["left"] = key.data["left"][sent:] or memoryview(said)
            if mask & selectors.EVENT_READ and not key.fileobj.recv(1 << 20):
                raise ConnectionResetError
        except BlockingIOError:
            pass
        except OSError:
            chooser.unregister(key.fileobj)
            key.fileobj.close()
            try:
                enter()
            except OSError:
                sys.exit()
"""


@contextlib.asynccontextmanager
async def crowd(path: Path, processes: int, connections: int, said: bytes = b"") -> AsyncIterator[None]:
    """So many processes with so many connections each to `path`: mute, or sending `said` over and over."""
    peers: list[asyncio.subprocess.Process] = []
    try:
        for _ in range(processes):
            peers.append(  # noqa: PERF401 - those that were started are ended
                await asyncio.create_subprocess_exec(
                    sys.executable, "-I", "-S", "-c", _PEER, str(path), str(connections), stdin=PIPE, stdout=PIPE
                )
            )
        for peer in peers:
            assert peer.stdin is not None
            peer.stdin.write(said)
            peer.stdin.close()
        for peer in peers:
            assert peer.stdout is not None
            assert await peer.stdout.readline() == b"in\n"
        yield
    finally:
        for peer in peers:
            peer.kill()
            await peer.wait()


__all__ = ["crowd"]
