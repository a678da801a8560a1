"""What one stream of the log comes to: how many messages, and one hash over all of them.  Pure.

    digest_0 = 32 zero bytes
    digest_n = SHA-256(digest_(n-1) ‖ u64 log_index ‖ u64 stream_seq ‖ u64 received ‖ u16 length of subject ‖ subject ‖ payload)

big endian, `received` in Unix ns, over all messages of the stream in its order, the refused ones as well.  Audit seals
these with each checkpoint: so not even when the broker stored a message can be changed afterwards, whatever files and
manifest lines hold it.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from tallystick.schemas.errors import NOT_DECODED, Malformed
from tallystick.schemas.event import Event
from tallystick.schemas.security import StreamTotal
from tallystick.schemas.subjects import STREAMS

START: Final = bytes(32)
_POSITION: Final = struct.Struct(">QQQH")


class Total(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """One stream up to and with the message at `last_seq`."""

    messages: int = 0
    last_seq: int = 0
    digest: bytes = START

    def add(self, log_index: int, stream_seq: int, received: int, subject: str, payload: bytes) -> None:
        """Go on by one message."""
        name = subject.encode()
        hashed = hashlib.sha256(self.digest)
        try:
            hashed.update(_POSITION.pack(log_index, stream_seq, received, len(name)))
        except struct.error:  # only an archive that was changed holds such numbers: they have no hash
            hashed.update(b"impossible")
        hashed.update(name)
        hashed.update(payload)
        self.messages += 1
        self.last_seq = stream_seq
        self.digest = hashed.digest()

    def copy(self) -> Total:
        """The total as it is now."""
        return Total(self.messages, self.last_seq, self.digest)


def copied(totals: dict[str, Total]) -> dict[str, Total]:
    """All totals as they are now."""
    return {stream: total.copy() for stream, total in totals.items()}


def stated(totals: dict[str, Total], new: Callable[..., Event]) -> Iterable[Event]:
    """The events that state `totals`; `new` makes one of its type and fields."""
    for stream, total in totals.items():
        yield new(StreamTotal, stream=stream, messages=total.messages, last_seq=total.last_seq, digest=total.digest)


_decoder = msgspec.msgpack.Decoder(tuple[bytes, dict[str, Total]])


def dump(log: bytes, totals: dict[str, Total]) -> bytes:
    """The state of log and totals as bytes, for `load`."""
    return msgspec.msgpack.encode((log, totals))


def load(data: bytes) -> tuple[bytes, dict[str, Total]]:
    """What `dump` was given.  Raises `Malformed`."""
    try:
        log, totals = _decoder.decode(data)
    except NOT_DECODED as exc:
        raise Malformed("LOG_STATE", f"not a dump of the log's state: {exc}") from exc
    if totals.keys() != set(STREAMS):
        raise Malformed("LOG_STATE", "a dump with other streams")
    return log, totals
