"""What a person sees of an error: one line, never a traceback; that goes to a log, or with `--debug` to the terminal.

What no part has put into words of its own (`UNEXPECTED`) is a defect: its traceback is kept in
`$XDG_STATE_HOME/tallystick/errors.log` (by default `~/.local/state`), which the line names.
"""

from __future__ import annotations

import errno
import os
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tallystick.cli.stopping import INTERRUPTED
from tallystick.schemas.errors import ConfigError, TallystickError

# The log begins anew beyond this; the one before it stays.
MAX_LOG: Final = 1 << 20
_MAX_TEXT: Final = 400


def check_arguments(arguments: Sequence[str]) -> None:
    """Raise `ConfigError` for an argument that is not UTF-8: nothing that is written down could hold it."""
    for number, argument in enumerate(arguments, start=1):
        try:
            argument.encode()
        except UnicodeEncodeError:
            text = os.fsencode(argument).decode("utf-8", "backslashreplace")
            raise ConfigError("ARGUMENT_ENCODING", f"argument {number} is not UTF-8: {text[:64]}") from None


def told(exc: BaseException, *, debug: bool) -> tuple[str, int]:
    """What to write on standard error about what ended a command, and its exit code."""
    trace = "".join(traceback.format_exception(exc)) if debug else ""
    match exc:
        case KeyboardInterrupt():
            return "tallystick: interrupted\n", INTERRUPTED
        case TallystickError():
            return f"{trace}tallystick: {_line(str(exc))}\n", exc.exit_code
        case OSError():
            # Whatever no part has put into words of its own: a full disk, a folder without rights.
            place = f"{exc.filename}: " if exc.filename else ""
            advice = "; free some space and run it again" if exc.errno == errno.ENOSPC else ""
            text = str(ConfigError("SYSTEM", f"{place}{exc.strerror or type(exc).__name__}{advice}"))
        case _:
            said = "".join(traceback.format_exception_only(exc)).strip()
            text = str(ConfigError("UNEXPECTED", f"{said[:_MAX_TEXT]}; this is a defect"))
    if not debug:
        log = _log(exc)
        text += f"; the trace is in {log}" if log is not None else "; --debug before the command shows the trace"
    return f"{trace}tallystick: {_line(text)}\n", 2


def _line(text: str) -> str:
    """One line, and nothing in it that acts on a terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _log(exc: BaseException) -> Path | None:
    """Where the traceback was written; None where that is not possible."""
    try:
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        log = Path(state) / "tallystick" / "errors.log"
        log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if log.exists() and log.stat().st_size > MAX_LOG:
            log.replace(log.with_suffix(".log.1"))
        with log.open("a", encoding="utf-8", errors="backslashreplace") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(f"--- {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} pid {os.getpid()}\n")
            file.write("".join(traceback.format_exception(exc)))
    except (OSError, RuntimeError):
        return None  # a full disk, no home: the line on the terminal is what is left
    return log
