"""Asking the breaker over its socket: all that `kill` needs, and nothing else, so that it starts at once.

No configuration is read and no key: a deployment whose `deployment.toml` was spoiled while it runs is killed as any other.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Final

import msgspec

from tallystick.runtime.unix_socket import connect
from tallystick.schemas.control import MAX_ANSWER, SOCKET, Kill, Request, Status, encode_line
from tallystick.schemas.errors import NOT_DECODED, ConfigError, Malformed

ANSWER_S: Final = 10.0


async def ask(path: Path, request: Request, timeout: float = ANSWER_S) -> dict[str, Any]:
    """The answer of the breaker at `path`.  Raises `ConfigError` if it is not there, `Malformed` for nonsense."""
    try:
        reader, writer = await connect(path, MAX_ANSWER, timeout)
    except OSError as exc:
        raise ConfigError(
            "BREAKER_SOCKET", f"no breaker at {path}: {exc.strerror}; is the deployment up (`tallystick up`)?"
        ) from exc
    try:
        writer.write(encode_line(request))
        await writer.drain()
        line = await asyncio.wait_for(reader.readline(), timeout)
        answer: dict[str, Any] = msgspec.json.decode(line, type=dict[str, Any])
    except (OSError, TimeoutError, ValueError, *NOT_DECODED) as exc:
        raise Malformed("BREAKER_ANSWER", f"{path}: {type(exc).__name__}: {exc}") from exc
    finally:
        writer.close()
    return answer


async def demand(run: Path, request: Request) -> dict[str, Any]:
    """What the breaker of the deployment with the folder `run` answers.  Raises `ConfigError` where it refuses."""
    answer = await ask(run / SOCKET, request)
    if not answer.get("ok"):
        raise ConfigError(str(answer.get("code", "BREAKER_ANSWER")), str(answer.get("text", "the breaker refused")))
    return answer


async def kill(run: Path, scope: str, reason: str) -> dict[str, Any]:
    """Trip a breaker at once; no key is needed to stop."""
    return await demand(run, Kill(scope=scope, reason=reason))


async def status(run: Path) -> dict[str, Any]:
    """What is tripped, and the lease: `{"tripped": [Trip…], "armed": {"until": Unix ns, "venues": […]} or None}`."""
    return await demand(run, Status())
