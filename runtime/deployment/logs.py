"""Structured logs: one JSON object a line, one file a process, never a secret.

Values are redacted by type (`Secret` shows nothing of itself) and by key name, so that a credential or a
PIN that somebody passes by mistake does not reach the file.  Log files are not trusted: whoever can
write the folder can change them; evidence is on the bus.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections import deque
from pathlib import Path
from typing import Any, Final, TextIO, cast

import structlog

from tallystick.runtime.bus.log import Log
from tallystick.runtime.durable import append, open_append, read_regular
from tallystick.schemas.errors import ConfigError

REDACTED: Final = "[redacted]"
# Bytes of an error's text that are looked at.
_LAST: Final = 4_096
# Names under which something secret may be passed; public keys and hashes have other names.
_SECRET_NAMES: Final = frozenset(
    (
        "pin",
        "password",
        "passphrase",
        "secret",
        "secrets",
        "seed",
        "token",
        "credential",
        "private_key",
        "api_key",
        "jwt",
    )
)


def redact(_: Any, __: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    """Replace values under secret names, and anything that looks like a JWT."""
    for name, value in event.items():
        if name.lower() in _SECRET_NAMES or (
            isinstance(value, str) and value.startswith("eyJ") and value.count(".") == 2
        ):
            event[name] = REDACTED
    return event


def last_error() -> str:
    """The newest error that this process logged, with its time; empty while there is none."""
    return _errors[-1] if _errors else ""


_errors: deque[str] = deque(maxlen=1)


def _remember(_: Any, __: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    if event.get("level") in ("error", "critical"):
        said = " ".join(str(event[name]) for name in ("event", "code", "text") if name in event)
        _errors.append(f"{event.get('timestamp', '')[:19]}Z {said[:300]}")
    return event


def last_lines(path: Path, since: int) -> list[str]:
    """The last lines of a file that a component writes, which may be of any size and anything: none from before byte `since`."""
    try:
        at = max(since, path.lstat().st_size - _LAST)
        said = read_regular(path, _LAST, at)
    except OSError:
        return []
    return said.decode("utf-8", "replace").strip().splitlines()


def open_log(path: Path, component: str) -> Log:
    """The process's logger, writing to `path` (mode 0600).  Raises `ConfigError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = open_append(path, 0o600)
    except OSError as exc:
        raise ConfigError("LOG_FILE", f"cannot write {path}: {exc.strerror}") from exc
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            redact,
            _remember,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(default=str),
        ],
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", _Lines(descriptor))),
        cache_logger_on_first_use=False,
    )
    log: structlog.stdlib.BoundLogger = structlog.get_logger().bind(component=component, pid=os.getpid())
    # Libraries speak through the standard logging: the same file, the same redaction, nothing on stderr.
    logging.root.handlers[:] = [_Forward(log)]
    logging.root.setLevel(logging.WARNING)
    # At every TLS shutdown of the bus client asyncio warns about nothing.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    return log


class _Lines:
    """An open log file: each line is one write, and it is closed with the last logger that writes to it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)

    def write(self, text: str) -> None:
        """Append `text`.  Raises `OSError` where the disk is full."""
        append(self._descriptor, text.encode())

    def flush(self) -> None:
        """Nothing is held back."""


class _Forward(logging.Handler):
    """Hands the records of the standard logging on."""

    def __init__(self, log: structlog.stdlib.BoundLogger) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log.log(record.levelno, record.getMessage()[:2000], logger=record.name, exc_info=record.exc_info)
