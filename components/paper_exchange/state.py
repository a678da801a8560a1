"""What the venue remembers over a restart: one JSON line for each change, holding what the change left behind.

- A line is written (not fsynced) before the request that made the change is answered: a crash of the process loses
  nothing that was answered; one of the machine may.
- A later line's word on an order, an account or an API key replaces an earlier one's.  At start the file is read, and rewritten
  as one line, through a temporary file and a rename.
- A last line without its end is a write that a crash cut short: its request was never answered, it is dropped.
  Anything else that does not parse is refused.
- The file grows with what happens until the next start; it keeps as many closed orders as the engine does.
- The played market is not kept: it fills again from its feed.

The file is trusted as far as the venue is: an attacker who controls it can invent balances of paper and API keys.
"""

from __future__ import annotations

import os
from decimal import Decimal
from pathlib import Path

import msgspec

from tallystick.components.paper_exchange.access import Key
from tallystick.components.paper_exchange.orders import Balance, Order
from tallystick.runtime.durable import append
from tallystick.schemas.errors import NOT_DECODED, ConfigError


class Change(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The orders, accounts and API keys that were changed, as they are now (a key that is deleted: None), and all ledgers."""

    orders: list[Order]
    accounts: dict[str, dict[str, Balance]]
    market: dict[str, Decimal]
    fees: dict[str, Decimal]
    withdrawn: dict[str, Decimal]
    keys: dict[str, Key | None] = {}


class State:
    """The file behind `Engine.changed` and `Engine.restore`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = -1

    def read(self) -> list[Change]:
        """All changes, oldest first; none if there is no file.  Raises `ConfigError`."""
        try:
            lines = self._path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        except OSError as exc:
            raise ConfigError("PAPER_STATE", f"{self._path}: {exc.strerror}") from exc
        lines.pop()  # empty, or cut short
        changes = []
        for number, line in enumerate(lines, 1):
            try:
                changes.append(msgspec.json.decode(line, type=Change))
            except NOT_DECODED as exc:
                raise ConfigError("PAPER_STATE", f"{self._path} line {number}: {exc}; remove it to begin anew") from exc
        return changes

    def open(self, whole: Change) -> None:
        """Begin the file anew with `whole`.  Raises `OSError`."""
        new = self._path.with_suffix(".new")
        self._file = os.open(new, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self.append(whole)
        os.fsync(self._file)
        # A crash before this leaves the old file, after this the new one: both say the same.
        new.replace(self._path)

    def append(self, change: Change) -> None:
        """Write one line.  Raises `OSError`."""
        append(self._file, msgspec.json.encode(change) + b"\n")

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
        self._file = -1
