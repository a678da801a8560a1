"""What custody signed, on its own disk: it needs neither bus nor gateway, and is published when there is one.

One JSON object a line (`files`, kind `signed`). Each line holds the SHA-256 of the line before it, across files and
restarts; what is published of the journal is that hash, so a line that was published cannot be changed or dropped
unseen.

- An order's line is written before its request is signed: without it nothing is signed, because the
  hourly caps are restored from here.
- Cancels and queries are signed even where the disk is full.
- A line that does not parse was torn by a power failure: it is skipped and counted (`torn`).

The journal is not trusted: an attacker who controls it can at most make custody forget what it spent in
the past hour, which the published hashes show.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Final

import msgspec

from tallystick.components.custody.caps import Spent
from tallystick.components.custody.files import DayFiles
from tallystick.schemas.errors import NOT_DECODED, ConfigError
from tallystick.schemas.trust import HOUR_NS
from tallystick.venues import Denied

GENESIS: Final = "0" * 64
ORDER: Final = "order"


class Line(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One signing: `number` rises by one, `time` is Unix ns, `prev` the SHA-256 of the line before (hex).

    `counted` is what an order counts in the caps of `account`: `[asset, amount]` for both its assets.
    """

    number: int
    time: int
    op: str
    venue: str
    symbol: str
    client_order_id: str = ""
    decision_id: str = ""
    account: str = ""
    counted: tuple[tuple[str, Decimal], ...] = ()
    prev: str = GENESIS


_encoder = msgspec.json.Encoder(decimal_format="string")
_decoder = msgspec.json.Decoder(Line)


class Journal:
    """See the module docstring.  Owns the files in `directory` (made with mode 0700); one process at a time.

    At the time of opening, `spent` is what counts towards the caps, `signed` the client order ids of the past hour
    with their times (Unix ns), and `torn` the number of broken lines in the last two files.  Raises `ConfigError` for a folder that cannot be used and for a broken chain.
    """

    def __init__(self, directory: Path, clock: Callable[[], int]) -> None:
        self._files = DayFiles(directory, "signed")
        self._clock = clock
        self.number = 0
        self.head = GENESIS
        self.torn = 0
        self.signed: dict[str, int] = {}
        spent: list[Spent] = []
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            for path in self._files.newest(2):
                for line in self._read(path):
                    if line.op == ORDER and line.time > clock() - HOUR_NS:
                        spent.append(Spent(line.time, line.account, line.counted))
                        self.signed[line.client_order_id] = line.time
        except OSError as exc:
            raise ConfigError(
                "JOURNAL", f"{directory}: {exc.strerror}; custody needs a folder that it may write"
            ) from exc
        self.spent = tuple(spent)

    def _read(self, path: Path) -> Iterator[Line]:
        first = self.number == 0
        with path.open("rb") as file:
            for at, raw in enumerate(file, start=1):
                text = raw.rstrip(b"\n")
                if not text:
                    continue
                try:
                    line = _decoder.decode(text)
                except NOT_DECODED:
                    self.torn += 1
                    continue
                if not first and (line.number != self.number + 1 or line.prev != self.head):
                    raise ConfigError(
                        "JOURNAL_CHAIN",
                        f"{path} line {at}: number {line.number} does not follow {self.number}; somebody changed the "
                        "journal: keep it as evidence and move it away to start",
                    )
                first = False
                self.number, self.head = line.number, hashlib.sha256(text).hexdigest()
                yield line

    def append(
        self,
        op: str,
        venue: str,
        symbol: str,
        *,
        client_order_id: str = "",
        decision_id: str = "",
        spent: Spent | None = None,
    ) -> None:
        """Write one line; `sync` makes it outlast a power failure.  Raises `Denied` where it cannot be written."""
        now = self._clock()
        line = Line(
            number=self.number + 1,
            time=now,
            op=op,
            venue=venue,
            symbol=symbol,
            client_order_id=client_order_id,
            decision_id=decision_id,
            account=spent.account if spent else "",
            counted=spent.counted if spent else (),
            prev=self.head,
        )
        text = _encoder.encode(line)
        try:
            self._files.write(text, now)
        except OSError as exc:
            raise Denied("JOURNAL", f"cannot write to {self._files.directory}: {exc.strerror}") from exc
        self.number, self.head = line.number, hashlib.sha256(text).hexdigest()

    def sync(self) -> None:
        """Make what was appended outlast a power failure.  Raises `OSError`; safe in another thread."""
        self._files.sync()

    def close(self) -> None:
        """Close the file; the next line opens it again."""
        self._files.close()
