"""The worker's own JetStream: state and position in one atomic batch, and the lease of the one worker.

- A commit is one atomic batch in stream STATE (NATS 2.12, ADR-50): everything that changed, and last the position
  with `Nats-Expected-Last-Subject-Sequence`.  It is stored whole or not at all, and only while nobody else
  committed: two workers cannot both count.
- Whether a commit whose answer was lost is stored, the position says: it names its writer and its number.
- `take_over` writes a position of one's own before anything is read: whoever held it before is fenced from then
  on, so what is read afterwards stands still.
- What is deleted becomes an empty message that expires (`Nats-TTL`), in the same batch.
- The lease keeps two workers from taking over from each other in turn; it is a matter of order, not of safety.

STATE is derived and not trusted as evidence: an attacker who controls it can at most make detectors miss or repeat
alerts, which a rebuild from ORDERS shows.  State that cannot be read, or has no position, is deleted and rebuilt.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import functools
import json
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from tallystick.runtime.bus.link import Connection, Link
from tallystick.runtime.bus.log import Log
from tallystick.runtime.bus.metrics import Metrics
from tallystick.runtime.bus.wire import Message, NoResponders
from tallystick.schemas.bounds import SECOND
from tallystick.schemas.errors import NOT_DECODED, ConfigError, Malformed, TallystickError, Unverified

# The server's limit on an atomic batch (ADR-50); the position is one of them.
MAX_BATCH: Final = 1000
MAX_CHANGES: Final = MAX_BATCH - 1
TIMEOUT_S: Final = 3.0
RETRY_S: Final = 0.2
# A broker that has just started may not serve its streams yet; after ten seconds there are none.
MAX_UNHEARD: Final = 50
# Long enough for a pause of the process or the broker, short enough that a successor starts within seconds.
LEASE_S: Final = 3.0
RENEW_S: Final = 1.0
# The shortest that the server allows.
TOMBSTONE_TTL: Final = "1s"
WRONG_LAST_SEQUENCE: Final = frozenset((10071, 10164))

_DIRECT: Final = "$JS.API.DIRECT.GET"
_STATE: Final = "STATE"
_BUCKET: Final = "leases"


class Fenced(TallystickError):
    """Another worker has taken over: this one must stop."""


class StoreRefused(TallystickError):
    """The worker's own JetStream refused a request; `code` is `JS_<err_code>`."""


class WrongLast(StoreRefused):
    """The compare-and-set failed: somebody wrote in between."""


class Position(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """How far the state reaches: `[owner, number, applied, time, rebuilding]`.

    `owner` is the writer's boot id, `number` counts its commits; `applied` is the last applied stream sequence, `time`
    the stream time there (ns); `rebuilding`: the state began empty and has not caught up since.
    """

    owner: bytes
    number: int
    applied: int = 0
    time: int = 0
    rebuilding: bool = True


class LeaseRecord(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Who works: `[owner, number, until]`; `until` is Unix ns by the owner's clock, 0 when given back."""

    owner: bytes
    number: int
    until: int


Change = tuple[str, bytes]
_position_decoder = msgspec.msgpack.Decoder(Position)
_lease_decoder = msgspec.msgpack.Decoder(LeaseRecord)


class JetStream:
    """Requests to the JetStream of the component's own account; lost connections are tried again."""

    def __init__(self, link: Link, metrics: Metrics, log: Log) -> None:
        self.link = link
        self.metrics = metrics
        self.log = log

    async def last(self, stream: str, subject: str) -> tuple[bytes, int] | None:
        """The newest message on `subject` and its sequence; None where there is none."""
        message = await self.persist(lambda c: c.request(f"{_DIRECT}.{stream}.{subject}", timeout_s=TIMEOUT_S))
        headers = message.headers
        status = headers.get("Status", "")
        if status == "404":
            return None
        if status:
            raise StoreRefused(f"JS_{status}", f"{subject}: {headers.get('Description', '')}")
        return message.data, int(headers["Nats-Sequence"])

    async def persist(self, attempt: Callable[[Connection], Any]) -> Any:
        """Make the attempt on the current connection until it comes to an answer."""
        unheard = 0
        while True:
            connection = await self.link.connection()
            try:
                return await attempt(connection)
            except NoResponders as exc:
                unheard += 1
                if unheard > MAX_UNHEARD:
                    raise ConfigError(
                        "STATE_MISSING", "no stream STATE or bucket leases: provision the broker"
                    ) from exc
            except OSError as exc:
                self.metrics.add("state_retries")
                self.log.warning("state: no answer, trying again", error=f"{type(exc).__name__}: {exc}"[:300])
                if connection.alive and isinstance(exc, TimeoutError):
                    self.link.abandon(connection, "no answer from the component's own JetStream")
            await asyncio.sleep(RETRY_S)


def stored_seq(message: Message, what: str) -> int:
    """The sequence in a publish acknowledgement.  Raises `WrongLast` or `StoreRefused`."""
    try:
        answer = json.loads(message.data)
        error = answer.get("error")
        if error is None:
            return int(answer["seq"])
        code, text = int(error.get("err_code", 0)), str(error.get("description"))
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise StoreRefused("JS_ANSWER", f"{what}: not an acknowledgement: {exc}") from exc
    refusal = WrongLast if code in WRONG_LAST_SEQUENCE else StoreRefused
    raise refusal(f"JS_{code}", f"{what}: {text}")


class StateStore:
    """State and position of one worker under `state.<name>.`.

    Owns the revision of the position.  One commit at a time: the caller holds a lock.
    """

    def __init__(self, jetstream: JetStream, name: str, owner: bytes, entropy: Callable[[int], bytes]) -> None:
        self._jetstream = jetstream
        self._prefix = f"state.{name}"
        self._owner = owner
        self._entropy = entropy
        self._revision = 0
        self.position = Position(owner, 0)

    async def take_over(self) -> None:
        """Make the position ours, a fresh one where there is none that can be read.

        Raises `Fenced` if another worker does the same at once.
        """
        found = await self._jetstream.last(_STATE, f"{self._prefix}.position")
        if found is not None:
            self._revision = found[1]
            try:
                self.position = msgspec.structs.replace(_position_decoder.decode(found[0]), owner=self._owner, number=0)
            except NOT_DECODED:
                # A fresh position beside old keys: `load` refuses them.
                self.position = Position(self._owner, 0)
        # From here on whoever wrote before cannot commit any more: what we read stands still.
        await self.commit(self.position, {})

    async def load(self, restore: Callable[[str, bytes, bytes], None]) -> int:
        """Hand every key to `restore(table, key, value)`; how many there are.

        Raises `Unverified` or `Malformed` for state that does not belong to the position or that nobody here wrote.
        """
        kept = await self._read()
        if kept and self.position.applied == 0 and self.position.time == 0:
            raise Unverified("STATE", f"{len(kept)} keys under {self._prefix} without a position")
        for subject, value in kept.items():
            tokens = subject.removeprefix(f"{self._prefix}.").split(".")
            if len(tokens) != 3 or tokens[0] != "table":
                raise Unverified("STATE", f"unknown subject {subject[:200]}")
            restore(tokens[1], _unbase64(tokens[2], subject), value)
        return len(kept)

    async def reset(self) -> None:
        """Delete everything kept and begin anew: the state is rebuilt from the streams."""
        self.position = Position(self._owner, 0)
        subjects = list(await self._read())
        for start in range(0, len(subjects) + 1, MAX_CHANGES):
            # Crash between two batches: there is no position yet, so the rest is refused and deleted at the next start.
            await self._commit(self.position, dict.fromkeys(subjects[start : start + MAX_CHANGES]))

    async def _read(self) -> dict[str, bytes]:
        kept: dict[str, bytes] = {}
        start, end = 1, False
        while not end:
            page, end = await self._jetstream.persist(functools.partial(self._page, start))
            for message in page:
                headers = message.headers
                start = int(headers["Nats-Sequence"]) + 1
                if message.data and headers["Nats-Subject"] != f"{self._prefix}.position":
                    kept[headers["Nats-Subject"]] = message.data
        return kept

    async def _page(self, start: int, connection: Connection) -> tuple[list[Message], bool]:
        # Batched direct get (ADR-31): up to so many messages, then one with status 204.
        inbox = connection.new_inbox()
        arrived: asyncio.Queue[Message] = asyncio.Queue()
        subscription = connection.wire.subscribe(inbox, arrived.put_nowait)
        try:
            request = {"seq": start, "batch": MAX_BATCH, "next_by_subj": f"{self._prefix}.>"}
            connection.wire.send(f"{_DIRECT}.{_STATE}", json.dumps(request).encode(), inbox)
            page: list[Message] = []
            while True:
                async with asyncio.timeout(TIMEOUT_S):
                    message = await arrived.get()
                headers = message.headers
                status = headers.get("Status", "")
                if status == "204":
                    return page, headers.get("Nats-Num-Pending", "0") == "0"
                if status == "404":
                    return page, True
                if status:
                    raise StoreRefused(f"JS_{status}", f"reading state: {headers.get('Description', '')}")
                page.append(message)
        finally:
            if connection.alive:
                connection.wire.unsubscribe(subscription)

    async def commit(self, position: Position, changes: Mapping[Change, bytes | None]) -> None:
        """Store `changes` (by table and key; None deletes) and the position in one piece.

        Raises `Fenced` once another worker has committed, `StoreRefused` for everything else that time cannot heal.
        """
        if len(changes) > MAX_CHANGES:
            raise ConfigError("STATE_BATCH", f"{len(changes)} changes in one commit, limit {MAX_CHANGES}")
        await self._commit(
            position, {f"{self._prefix}.table.{table}.{_base64(key)}": value for (table, key), value in changes.items()}
        )

    async def _commit(self, position: Position, changes: Mapping[str, bytes | None]) -> None:
        position = msgspec.structs.replace(position, owner=self._owner, number=self.position.number + 1)
        record = msgspec.msgpack.encode(position)
        messages: list[tuple[str, bytes, dict[str, str]]] = [
            (subject, value or b"", {} if value else {"Nats-TTL": TOMBSTONE_TTL}) for subject, value in changes.items()
        ]
        expected = {"Nats-Expected-Last-Subject-Sequence": str(self._revision)}
        messages.append((f"{self._prefix}.position", record, expected))
        try:
            self._revision = await self._jetstream.persist(lambda c: self._send(c, messages))
        except WrongLast as exc:
            # Either an earlier attempt is stored whose answer was lost, or another worker has taken over.
            found = await self._jetstream.last(_STATE, f"{self._prefix}.position")
            if found is None or found[0] != record:
                raise Fenced("FENCED", f"{self._prefix}: another worker has taken over ({exc.text})") from exc
            self._revision = found[1]
        # Durable here: after a crash the successor begins at `position.applied`.
        self.position = position
        self._jetstream.metrics.add("state_commits")

    async def _send(self, connection: Connection, messages: list[tuple[str, bytes, dict[str, str]]]) -> int:
        batch = self._entropy(16).hex()
        for number, (subject, payload, extra) in enumerate(messages, 1):
            headers = {"Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(number), **extra}
            if number < len(messages):
                connection.wire.send(subject, payload, headers=headers)
                continue
            headers["Nats-Batch-Commit"] = "1"
            # Crash here: the server drops a batch without its commit.
            return stored_seq(await connection.request(subject, payload, timeout_s=TIMEOUT_S, headers=headers), subject)
        raise StoreRefused("STATE_BATCH", "an empty batch")


class Lease:
    """The right to work on one stream, in bucket `leases`.  `keep` runs beside the worker."""

    def __init__(self, jetstream: JetStream, name: str, owner: bytes, clock: Callable[[], int]) -> None:
        self._jetstream = jetstream
        self._subject = f"$KV.{_BUCKET}.{name}"
        self._owner = owner
        self._clock = clock
        self._revision = 0
        self._number = 0
        self._lock = asyncio.Lock()
        self._released = False

    async def take(self) -> None:
        """Take the lease; waits until a dead worker's is over.  Raises `ConfigError` while a live one holds it."""
        seen, waited = 0, 0.0
        while True:
            found = await self._jetstream.last(f"KV_{_BUCKET}", self._subject)
            if found is None:
                break
            try:
                holder = _lease_decoder.decode(found[0])
            except NOT_DECODED:
                # Nobody here wrote it; a live holder shows at its next renewal.
                holder = LeaseRecord(b"", 0, self._clock() + int(LEASE_S * SECOND))
            if seen not in (0, found[1]):
                raise ConfigError(
                    "LEASE_HELD", f"{self._subject}: another worker is at work (boot {holder.owner.hex()})"
                )
            seen = self._revision = found[1]
            # Nobody holds it longer without renewing: a wrong clock must not keep us out for ever.
            left = min((holder.until - self._clock()) / SECOND, LEASE_S - waited)
            if left <= 0:
                break
            waited += (pause := min(left, RENEW_S / 4))
            await asyncio.sleep(pause)
        await self._write(self._clock() + int(LEASE_S * SECOND))

    async def keep(self) -> None:
        """Renew the lease until it is given back.  Raises `Fenced` when another worker took it."""
        while True:
            await asyncio.sleep(RENEW_S)
            async with self._lock:
                if self._released:
                    return
                await self._write(self._clock() + int(LEASE_S * SECOND))

    async def release(self) -> None:
        """Give the lease back, so that a successor need not wait."""
        async with self._lock:
            self._released = True
            await self._write(0)

    async def _write(self, until: int) -> None:
        self._number += 1
        record = msgspec.msgpack.encode(LeaseRecord(self._owner, self._number, until))
        headers = {"Nats-Expected-Last-Subject-Sequence": str(self._revision)}
        try:
            answer = await self._jetstream.persist(
                lambda c: c.request(self._subject, record, timeout_s=TIMEOUT_S, headers=headers)
            )
            self._revision = stored_seq(answer, self._subject)
        except WrongLast as exc:
            found = await self._jetstream.last(f"KV_{_BUCKET}", self._subject)
            if found is None or found[0] != record:
                raise Fenced("FENCED", f"{self._subject}: another worker has taken the lease ({exc.text})") from exc
            self._revision = found[1]


def _base64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def _unbase64(text: str, where: str) -> bytes:
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as exc:
        raise Malformed("STATE_KEY", f"{where}: not base64url") from exc
    if _base64(raw) != text:
        raise Malformed("STATE_KEY", f"{where}: not canonical base64url")
    return raw
