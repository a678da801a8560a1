"""Snapshots: what a component has built from a stream, kept so that its next start reads on from there.

    DIR/state/<component>/<stream>.snapshot = magic ‖ frame… ‖ HMAC-SHA256 of all before it (32 bytes)
    frame = u32 big-endian length ‖ msgpack:  header, chains, strangers, then [table, [row…]] as often as needed

A snapshot is a cache of messages that this component verified itself, and proves nothing to anybody else.

- It is sealed with a key that only this component has (`snapshot_key`).  Nothing of it is decoded before that holds.
- It is bound to deployment, component, stream, the filters that the stream was read by, the trust root, the version of
  the code and of the state; what differs in one of them could have been judged otherwise.
- It is bound to the message at its position, subject and bytes: the broker must still have this very one there.  A
  stream that was cut, purged or made anew behind it is found so.
- It holds the state of every chain (`ReaderChains`): a repeat, a fork, or words after a closing statement are found
  across a start as without one.
- On any doubt (no file, another's, an older code's, a seal or a message that does not fit) the whole stream is read;
  log and notice say why.
- It says what the stream says up to its position and nothing that is merely under way: from an older one the same
  state follows, with more to read.
- It is replaced whole (`write_durably`): kill -9 leaves the old one or the new one.

The file is not trusted: an attacker who controls it can at most delete it or put an older one of this component back,
which costs the time to read.  Who has the component's own secrets is that component, and could say the same live.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import hashlib
import hmac
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Final, Protocol

import msgspec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tallystick.runtime.bus.log import Log
from tallystick.runtime.bus.metrics import Metrics
from tallystick.runtime.bus.reader import Delivery, StreamReader
from tallystick.runtime.bus.received import RawHandler
from tallystick.runtime.bus.tasks import Tasks
from tallystick.runtime.durable import write_durably
from tallystick.schemas.errors import NOT_DECODED, Malformed, TallystickError, Unverified
from tallystick.schemas.seal import MAX_INT, ChainRecord, ReaderChains

MAGIC: Final = b"tallystick snapshot v1\n\n"
SUFFIX: Final = ".snapshot"
ENDS: Final = "ends.json"
MAX_ENDS: Final = 4_096
# A stream gains some thousand messages meanwhile, which the broker counts at once.
ENDS_S: Final = 600.0
MAC_BYTES: Final = 32
# The largest states have bounds of some hundred thousand rows of a hundred bytes.
MAX_BYTES: Final = 256 << 20
# Messages after which there is a new one: what a start reads at most, about two seconds.
EVERY: Final = 10_000
# … or one for so many bytes, where these are more: what a message costs for it stays bounded.
BYTES_A_MESSAGE: Final = 200
# Rows encoded at once, of some twenty entries each: about a millisecond, then everything else has its turn.
SLICE: Final = 100
# Entries beyond its bound that a large table may have before the oldest are dropped, together.
SLACK: Final = 1_000

_encoder = msgspec.msgpack.Encoder(decimal_format="string")

# Opens a reader of the stream: handler, what to call when all is read, first sequence.
OpenReader = Callable[[RawHandler, Callable[[], None], int], StreamReader]


def snapshot_key(secret: bytes, deployment: str, component: str) -> bytes:
    """The key that seals a component's snapshots, from a secret that nobody else is given."""
    info = b"\x00".join((MAGIC, deployment.encode(), component.encode()))
    return HKDF(SHA256(), 32, salt=None, info=info).derive(secret)


class Kept(Protocol):
    """State that a component builds from one stream, message by message.

    `version` rises when the rows, or what messages do to them, change; `tables` names the type of each table's rows.
    """

    version: int
    tables: Mapping[str, Any]

    def settled(self, now: int) -> bool:
        """Whether a snapshot can be taken; if not, whoever is asked sees to it that it can in a moment."""
        ...

    def snapshot(self) -> Mapping[str, Iterable[Any]]:
        """The rows of each table as they are now, in order; what changes later does not show in them."""
        ...

    def restore(self, tables: Mapping[str, list[Any]]) -> None:
        """Take the state from such rows; called before anything was read.

        Raises `TallystickError` for rows that are none, and then has changed nothing.
        """
        ...


class Vault:
    """Where a component keeps its snapshots, and the key that seals them.

    Beside them lies where each stream ended when it was read last: not sealed, since a wrong one costs time alone.
    """

    def __init__(self, folder: Path, key: bytes) -> None:
        self.folder = folder
        self.key = key

    def ends(self) -> dict[str, int]:
        """The last position of each stream that is known; nothing where there is no file, or none of ours."""
        try:
            data = read_private(self.folder / ENDS, MAX_ENDS)
            return msgspec.json.decode(data, type=dict[str, Annotated[int, msgspec.Meta(ge=1, le=MAX_INT)]])
        except (OSError, Unverified, *NOT_DECODED):
            return {}

    async def keep_ends(self, ends: Mapping[str, int], log: Log) -> None:
        """Keep the positions `ends`, as they are every `ENDS_S` and when this is cancelled."""
        try:
            while True:
                await asyncio.sleep(ENDS_S)
                await asyncio.to_thread(self._remember, dict(ends), log)
        finally:
            self._remember(ends, log)

    def _remember(self, ends: Mapping[str, int], log: Log) -> None:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_durably(self.folder / ENDS, msgspec.json.encode(ends), 0o600)
        except OSError as exc:
            log.warning("ends of streams not written", folder=str(self.folder), error=exc.strerror)


class Binding(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What must be the same, field by field, for a snapshot to count; `trust` is the digest of the trust root."""

    deployment: str
    component: str
    stream: str
    filters: tuple[str, ...]
    trust: bytes
    software: str
    state: int


class Header(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """`[binding, position, message]`: the last message applied, by stream sequence and `digest_of`."""

    binding: Binding
    position: int
    message: bytes


class Snapshots:
    """The snapshots of one stream.  Owns its chains, which the reader of the stream keeps up to date.

    `position` is where reading goes on: 0 until `resume` found a snapshot that holds.
    """

    def __init__(
        self,
        kept: Kept,
        vault: Vault,
        binding: Binding,
        *,
        clock: Callable[[], int],
        within: Tasks,
        metrics: Metrics,
        log: Log,
    ) -> None:
        self.chains = ReaderChains()
        self.strangers = ReaderChains()
        self.position = 0
        self._kept = kept
        self._binding = binding
        self._key = vault.key
        self._clock = clock
        self._file = vault.folder / f"{binding.stream}{SUFFIX}"
        self._tasks = Tasks(within)
        self._writing: asyncio.Task[None] | None = None
        self._metrics = metrics
        self._log = log
        self._last: Delivery | None = None
        self._due = EVERY
        self._since = 0

    # -- reading ------------------------------------------------------------------------------------

    async def resume(self, open_reader: OpenReader, notice: Callable[[str, str], object]) -> None:
        """Take the state from the snapshot, if it holds; else say why, and leave everything as it is."""
        try:
            header, frames = await asyncio.to_thread(self._open)
            self._require_ours(header)
            await self._require_stored(header, open_reader)
            chains, strangers = self._restore(frames)
        except FileNotFoundError:
            self._log.info("no snapshot: the whole stream is read", stream=self._binding.stream)
            return
        except TallystickError as exc:
            self._metrics.add("snapshots_refused")
            self._log.warning("snapshot refused: the whole stream is read", code=exc.code, text=exc.text)
            if exc.code != "SNAPSHOT_OUTDATED":
                notice(exc.code, exc.text)
            return
        self.chains, self.strangers, self.position = chains, strangers, header.position
        self._log.info("snapshot", stream=self._binding.stream, position=header.position)

    def _open(self) -> tuple[Header, list[bytes]]:
        """Header and further frames.  Raises `FileNotFoundError`, `Unverified`, or `Malformed` for what is no snapshot."""
        for left in self._file.parent.glob(f".{self._file.name}.*"):
            left.unlink()  # of a write that a crash cut off
        body = _unsealed(self._file, self._key)
        frames: list[bytes] = []
        place = len(MAGIC)
        while place < len(body):
            end = place + 4 + int.from_bytes(body[place : place + 4], "big")
            frames.append(body[place + 4 : end])
            place = end
        try:
            return msgspec.msgpack.decode(frames[0], type=Header), frames[1:]
        except (IndexError, *NOT_DECODED) as exc:
            raise Malformed("SNAPSHOT_CONTENT", f"{self._file}: no header: {exc}") from exc

    def _require_ours(self, header: Header) -> None:
        ours, found = (msgspec.structs.asdict(b) for b in (self._binding, header.binding))
        differs = [name for name, value in ours.items() if found[name] != value]
        if {"deployment", "component", "stream"} & set(differs):
            raise Unverified(
                "SNAPSHOT_FOREIGN",
                f"{self._file} is of {header.binding.stream} as {header.binding.component} of "
                f"{header.binding.deployment} read it",
            )
        if differs:
            raise Unverified("SNAPSHOT_OUTDATED", f"{self._file} was written with another {', '.join(differs)}")

    def _restore(self, frames: list[bytes]) -> tuple[ReaderChains, ReaderChains]:
        """Give the component its state; the chains."""
        # Hundreds of thousands of new objects, none of them garbage: the collector would walk through them again and again.
        gc.disable()
        try:
            chains, strangers, tables = self._decoded(frames)
            self._kept.restore(tables)
        finally:
            gc.enable()
        return chains, strangers

    def _decoded(self, frames: list[bytes]) -> tuple[ReaderChains, ReaderChains, dict[str, list[Any]]]:
        tables: dict[str, list[Any]] = {name: [] for name in self._kept.tables}
        decoders = {name: msgspec.msgpack.Decoder(list[row]) for name, row in self._kept.tables.items()}  # type: ignore[valid-type]
        try:
            chains, strangers = (
                ReaderChains.of(msgspec.msgpack.decode(frame, type=list[ChainRecord])) for frame in frames[:2]
            )
            for frame in frames[2:]:
                name, rows = msgspec.msgpack.decode(frame, type=tuple[str, msgspec.Raw])
                tables[name] += decoders[name].decode(rows)
        except (ValueError, KeyError, Malformed, *NOT_DECODED) as exc:
            raise Malformed("SNAPSHOT_CONTENT", f"{self._file}: {exc}") from exc
        return chains, strangers, tables

    async def _require_stored(self, header: Header, open_reader: OpenReader) -> None:
        """Raise `Unverified` unless the broker still holds the message at the position."""
        found: asyncio.Future[Delivery | None] = asyncio.get_running_loop().create_future()

        def first(delivery: Delivery | None = None) -> None:
            if not found.done():
                found.set_result(delivery)

        reader = open_reader(first, first, header.position)
        try:
            delivery = await found
        finally:
            await reader.stop()
        if delivery is None or delivery.stream_seq != header.position:
            there = "nothing" if delivery is None else f"{delivery.stream_seq} first"
            text = f"{self._binding.stream} holds {there} from position {header.position} on, where there was a message"
            raise Unverified("SNAPSHOT_POSITION", f"{text}: it was cut or made anew")
        if digest_of(delivery) != header.message:
            text = f"another message at position {header.position} of {self._binding.stream} than there was"
            raise Unverified("SNAPSHOT_POSITION", f"{text}: it was made anew")

    # -- writing ------------------------------------------------------------------------------------

    def passed(self, delivery: Delivery) -> None:
        """A message was handled, or passed over: when it is time, its state is written beside everything else."""
        self._last = delivery
        self._since += 1
        if self._since < self._due or (self._writing is not None and not self._writing.done()):
            return
        if self._kept.settled(self._clock()):
            self._writing = self._tasks.start(self._write(*self._take()), "snapshot")

    async def close(self) -> None:
        """Write what was read since the last one; called when the reader has stopped."""
        if self._writing is not None:
            await self._writing
        if self._since and self._kept.settled(self._clock()):
            await self._write(*self._take())

    async def kill(self) -> None:
        """Stop at once, as a crash would."""
        await self._tasks.end()

    def _take(self) -> tuple[Header, list[bytes], Mapping[str, Iterable[Any]]]:
        """All at one position, copied; nothing is encoded yet that could be large."""
        if self._last is None:
            raise Malformed("SNAPSHOT_CONTENT", "nothing was read yet")
        self._since = 0
        header = Header(self._binding, self._last.stream_seq, digest_of(self._last))
        chains = [_encoder.encode(chains.records()) for chains in (self.chains, self.strangers)]
        return header, chains, self._kept.snapshot()

    async def _write(self, header: Header, chains: list[bytes], tables: Mapping[str, Iterable[Any]]) -> None:
        data = bytearray(MAGIC)
        for frame in (_encoder.encode(header), *chains):
            _add(data, frame)
        for name, rows in tables.items():
            for some in _slices(rows):
                _add(data, _encoder.encode((name, some)))
                await asyncio.sleep(0)
        self._due = max(EVERY, len(data) // BYTES_A_MESSAGE)
        try:
            await asyncio.to_thread(self._store, data)
        except OSError as exc:
            # Only a cache: the next start reads more, or a later one is written.
            self._metrics.add("snapshots_failed")
            self._log.warning("snapshot not written", file=str(self._file), error=exc.strerror)
            return
        self._metrics.add("snapshots")

    def _store(self, data: bytearray) -> None:
        self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        data += hmac.digest(self._key, data, "sha256")
        if len(data) > MAX_BYTES:
            raise OSError(errno.EFBIG, f"{len(data)} bytes, limit {MAX_BYTES}")
        write_durably(self._file, bytes(data), 0o600)


def keep_newest(known: dict[Any, Any], most: int) -> None:
    """Drop the oldest entries of a large table when it has `SLACK` more than `most`.

    For what stands in snapshots: a plain dict is copied at once, and an entry at its front is found slowly, so that one
    at a time would cost more than many together.
    """
    if len(known) > most + SLACK:
        for key in list(islice(known, len(known) - most)):
            del known[key]


def forget(folder: Path) -> None:
    """Delete what a component kept in its folder: its next start reads all.  Raises `OSError`."""
    for kept in folder.glob(f"*{SUFFIX}"):
        kept.unlink()


def digest_of(delivery: Delivery) -> bytes:
    """SHA-256 of a stored message: length of the subject (u16 big-endian) ‖ subject ‖ payload."""
    name = delivery.subject.encode()
    return hashlib.sha256(len(name).to_bytes(2, "big") + name + delivery.payload).digest()


def read_private(path: Path, most: int) -> bytes:
    """A regular file of our own, readable by nobody else.  Raises `FileNotFoundError` and `Unverified`."""
    try:
        # No link is followed and no FIFO waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
                raise Unverified("SNAPSHOT_FILE", f"{path} is no regular file that is readable by its owner alone")
            if found.st_size > most:
                raise Unverified("SNAPSHOT_FILE", f"{path} has {found.st_size} bytes, limit {most}")
            return file.read(most + 1)
    except FileNotFoundError:
        raise
    except OSError as exc:
        raise Unverified("SNAPSHOT_FILE", f"{path} cannot be read: {exc.strerror}") from exc


def _unsealed(path: Path, key: bytes) -> bytes:
    """What was sealed, magic first.  Raises `FileNotFoundError` and `Unverified`."""
    data = read_private(path, MAX_BYTES)
    body, mac = data[:-MAC_BYTES], data[-MAC_BYTES:]
    if not body.startswith(MAGIC) or not hmac.compare_digest(hmac.digest(key, body, "sha256"), mac):
        raise Unverified("SNAPSHOT_SEAL", f"{path} was changed, cut, or not written by this component")
    return body


def _add(data: bytearray, frame: bytes) -> None:
    data += len(frame).to_bytes(4, "big")
    data += frame


def _slices(rows: Iterable[Any]) -> Iterator[list[Any]]:
    left = iter(rows)
    while some := list(islice(left, SLICE)):
        yield some
