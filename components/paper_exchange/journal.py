"""The request journal: one JSON line for each authenticated order request, in the order they were answered.

It shows what a client did: the same signed bytes twice (`payload_sha256`), the same client order id twice, and what
the venue said.  It is evidence for tests and operators and is not read back.
The journal is not trusted by anything: an attacker who can write it can at most deceive who reads it.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from tallystick.runtime.durable import append, open_append


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One request: `time` in Unix ns at receipt; `verdict` is the order's status or Binance's error number.

    `key` is the API key's `fingerprint`: who reads the journal learns no id.
    `payload_sha256` is over the signed bytes (query, then body, without `&signature=…`), in hex.
    """

    time: int
    key: str
    account: str
    request: str
    payload_sha256: str
    client_order_id: str
    order_id: int
    verdict: str
    text: str


class Journal:
    """Appends to one file, a single write per line, so that lines of a crashed process are whole or missing."""

    def __init__(self, path: Path) -> None:
        self._file = open_append(path, 0o600)

    def append(self, entry: Entry) -> None:
        """Write one line (to the kernel, not fsynced).  Raises `OSError`."""
        append(self._file, msgspec.json.encode(entry) + b"\n")

    def close(self) -> None:
        """Close the file; the journal cannot be used afterwards."""
        if self._file >= 0:
            os.close(self._file)
        # The number may be somebody else's from now on.
        self._file = -1


def read_journal(path: Path) -> list[Entry]:
    """All entries of a journal.  Raises `OSError` or what `NOT_DECODED` holds."""
    return [msgspec.json.decode(line, type=Entry) for line in path.read_bytes().splitlines()]
