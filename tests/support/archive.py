"""A small world of really sealed messages and an archive of them, for tests of the audit.

`Streams` plays the broker: it numbers messages per stream and keeps them in storage order.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from tallystick.components.audit.projector import Projector, Stored
from tallystick.record.archive import Archive
from tallystick.record.chains import Judgement
from tallystick.record.manifest import GENESIS, MANIFEST, Entry, Manifest, Segment, encode_entry, line_hash
from tallystick.record.place import Place, load_verifiers
from tallystick.record.report import Problem, Report
from tallystick.record.totals import stated
from tallystick.record.verify import verify
from tallystick.schemas import registry
from tallystick.schemas.credential import Credential
from tallystick.schemas.event import Event
from tallystick.schemas.ids import EventIds
from tallystick.schemas.market import Trade
from tallystick.schemas.nats_jwt import SessionKey
from tallystick.schemas.orders import Decision, Denial, Fill, Intent, OrderEvent, Permit, Signal, VenueOrder
from tallystick.schemas.seal import ChainWriter
from tallystick.schemas.security import BootEnded, Checkpoint, CredentialIssued, Head, Heartbeat, SessionRevoked
from tallystick.schemas.subjects import parse_subject
from tallystick.schemas.trust import ROOT_KEY_NAME, sign_document
from tests.support.world import NOW, credential, key, seed, trust_root

STEP = 1_000_000


class Session:
    """One component's boot: its credential and its chains."""

    def __init__(self, streams: Streams, component: str, number: int = 1, role: SessionKey | None = None) -> None:
        self.streams = streams
        self.component = component
        self.boot = seed(f"boot {component} {number}")[:16]
        self.credential, self.signer = credential(
            component, streams.trust, boot=self.boot, jti=f"{number}", role=role, lifetime=900
        )
        self.chains: dict[str, ChainWriter] = {}

    def chain(self, stream: str) -> ChainWriter:
        if stream not in self.chains:
            self.chains[stream] = ChainWriter(self.credential, self.signer, stream)
        return self.chains[stream]

    def renew(self, jti: str) -> Credential:
        self.credential, self.signer = credential(
            self.component, self.streams.trust, boot=self.boot, jti=jti, issued_at=self.streams.now, lifetime=900
        )
        for chain in self.chains.values():
            chain.renew(self.credential, self.signer)
        return self.credential

    def seal(self, *messages: tuple[str, Sequence[Event]], close: bool = False) -> list[tuple[str, bytes]]:
        """Seal one flush without storing it."""
        encoded = [(s, registry.encode_events(parse_subject(s).kind, events)) for s, events in messages]
        return self.chain(parse_subject(messages[0][0]).stream).seal(encoded, self.streams.tick(), close=close)

    def say(self, *messages: tuple[str, Sequence[Event]], close: bool = False) -> list[Stored]:
        """Seal one flush and store all of it."""
        return [self.streams.store(subject, payload) for subject, payload in self.seal(*messages, close=close)]

    def heads(self) -> tuple[Head, ...]:
        return tuple(
            Head(stream=name, seq=chain.seq - 1, hash=chain.prev) for name, chain in self.chains.items() if chain.seq
        )

    def heartbeat(self) -> None:
        self.say((f"guard.{self.component}", [self.streams.new(Heartbeat, heads=self.heads())]))


class Streams:
    """The broker's streams, the authority's session, and a clock that moves with each use."""

    def __init__(self) -> None:
        self.trust = trust_root()
        self.now = NOW
        self.stored: list[Stored] = []
        self.ids = EventIds(seed("ids"))
        self._last: dict[str, int] = {}
        self.authority = Session(self, "authority")
        self.issue(self.authority)

    def tick(self) -> int:
        self.now += STEP
        return self.now

    def new(self, kind: type[Event], causes: Sequence[bytes] = (), **fields: object) -> Event:
        own: dict[str, Any] = {"id": self.ids.next(self.tick()), "ts": self.now, "causes": tuple(causes), **fields}
        return kind(**own)

    def store(self, subject: str, payload: bytes, stream: str = "") -> Stored:
        stream = stream or parse_subject(subject).stream
        self._last[stream] = self._last.get(stream, 0) + 1
        message = Stored(stream, self._last[stream], subject, payload, self.tick())
        self.stored.append(message)
        return message

    def issue(self, session: Session) -> None:
        c = session.credential
        event = self.new(
            CredentialIssued,
            boot=c.boot,
            session_key=c.session_key,
            credential_hash=c.digest,
            issued_at=c.issued_at,
            expires_at=c.expires_at,
            method="certificate",
            certificate=seed("certificate"),
        )
        self.authority.say((f"cred.{session.component}", [event]))

    def session(self, component: str, number: int = 1) -> Session:
        session = Session(self, component, number)
        self.issue(session)
        return session

    def end(self, session: Session, *, revoke: bool = False) -> None:
        kind = SessionRevoked if revoke else BootEnded
        self.authority.say((f"cred.{session.component}", [self.new(kind, boot=session.boot, reason="gone")]))

    def trade(self, number: int) -> Event:
        return self.new(
            Trade, trade_id=number, price=Decimal("0.00141342"), qty=Decimal(23), time=self.now, buyer_is_maker=True
        )

    def ticks(self, session: Session, flushes: int, messages: int = 2, events: int = 5) -> None:
        for _ in range(flushes):
            session.say(
                *(
                    (f"md.trade.paper.{symbol}", [self.trade(i) for i in range(events)])
                    for symbol in ("XRP-ETH", "BTC-USDT")[:messages]
                )
            )


class Story:
    """Two orders' whole way, one filled and one denied, with ticks before them."""

    def __init__(self, streams: Streams | None = None) -> None:
        s = self.streams = streams or Streams()
        self.market = s.session("market-data")
        self.strategy = s.session("strategy-alpha")
        self.gateway = s.session("gateway")
        self.execution = s.session("execution")
        self.portfolio = s.session("portfolio")
        self.audit = s.session("audit")
        s.ticks(self.market, 3)
        tick = s.trade(77)
        self.market.say(("md.trade.paper.XRP-ETH", [tick]))
        signal = s.new(Signal, causes=[tick.id], name="momentum", value=Decimal("1.5"))
        self.strategy.say(("signal.alpha.paper.XRP-ETH", [signal]))
        self.intent = self._intent(signal.id, Decimal(10))
        self.decision = self._decide(self.intent, None)
        self.client_order_id = "ts-1"
        self.fill = self._carry_out()
        self.denied = self._intent(signal.id, Decimal(100000))
        self._decide(self.denied, Denial(code="NOTIONAL_EXCEEDS_LIMIT", text="notional=141 ETH, limit=5 ETH"))
        for session in (self.market, self.strategy, self.gateway, self.execution, self.portfolio):
            session.heartbeat()

    def _intent(self, signal: bytes, qty: Decimal) -> Event:
        s = self.streams
        intent = s.new(Intent, causes=[signal], side="buy", type="limit", qty=qty, price=Decimal("0.00141"))
        self.strategy.say(("order.intent.alpha.paper.XRP-ETH", [intent]))
        return intent

    def _decide(self, intent: Event, denial: Denial | None) -> Event:
        s = self.streams
        order = VenueOrder("XRPETH", "BUY", "LIMIT", "GTC", "10", "0.00141", "ts-1")
        decision = s.new(
            Decision,
            causes=[intent.id],
            verdict="deny" if denial else "permit",
            intent_id=intent.id,
            intent_hash=seed("intent"),
            trust_root=seed("trust root"),
            denials=(denial,) if denial else (),
            policy_hash=seed("policy"),
            policies=("limits",),
            permit=None if denial else Permit("main", order, seed("instrument"), seed("boot")[:16], s.now + 10**9),
        )
        self.gateway.say(("order.decision.alpha.paper.XRP-ETH", [decision]))
        return decision

    def _carry_out(self) -> Event:
        s = self.streams
        last = self.decision.id
        for state, status in (("submitting", ""), ("accepted", "NEW"), ("closed", "FILLED")):
            event = s.new(
                OrderEvent,
                causes=[last],
                intent_id=self.intent.id,
                decision_id=self.decision.id,
                client_order_id="ts-1",
                state=state,
                venue_order_id="" if state == "submitting" else "4711",
                status=status,
            )
            last = event.id
            self.execution.say(("order.event.alpha.paper.XRP-ETH", [event]))
        fill = s.new(
            Fill,
            causes=[last],
            intent_id=self.intent.id,
            client_order_id="ts-1",
            venue_order_id="4711",
            trade_id=9,
            side="buy",
            price=Decimal("0.00141"),
            qty=Decimal(10),
            commission=Decimal("0.00001"),
            commission_asset="ETH",
            maker=False,
            time=s.now,
        )
        self.portfolio.say(("fill.alpha.paper.XRP-ETH", [fill]))
        return fill


def project(
    projector: Projector, messages: Sequence[Stored], *, flush: int, compact: Sequence[str] = ()
) -> list[Judgement]:
    """Archive what is new of `messages`, one manifest line for every `flush` of them; `compact`: streams, each time."""
    judged = []
    for i, message in enumerate(messages):
        if message.stream_seq > projector.positions[message.stream]:
            judged.append(projector.take(message, projector.open(message)))
        if i % flush == flush - 1:
            projector.flush()
            for stream in compact:
                projector.archive.compact(stream, 0)
            projector.archive.sweep(1 << 62)
    projector.flush()
    return judged


class Vault:
    """An archive in a deployment folder, and what root on that machine can do to it."""

    def __init__(self, directory: Path) -> None:
        self.deployment = directory
        self.path = directory / "archive"
        (self.path / "trust").mkdir(parents=True)
        (directory / "trust").mkdir()
        note = sign_document(trust_root(), (ROOT_KEY_NAME, key("operator-root")))
        (self.path / "trust" / "root-1.note").write_text(note)
        (directory / "trust" / "operator-root.pub").write_text(key("operator-root").public.hex() + "\n")
        self.place = Place(self.path, directory / "trust" / "operator-root.pub")

    def copy(self, directory: Path) -> Vault:
        shutil.copytree(self.deployment, directory)
        twin = object.__new__(Vault)
        twin.deployment, twin.path = directory, directory / "archive"
        twin.place = Place(twin.path, directory / "trust" / "operator-root.pub")
        return twin

    def open(self) -> Projector:
        return Projector(Archive(self.path), load_verifiers(self.place))

    def project(self, messages: Sequence[Stored], *, flush: int = 10) -> list[Judgement]:
        """Archive messages, one manifest line for every `flush` of them; goes on where it stopped."""
        projector = self.open()
        try:
            return project(projector, messages, flush=flush)
        finally:
            projector.archive.close()

    def checkpoint(self, streams: Streams, session: Session) -> None:
        """Let audit seal what the manifest says now, and archive that."""
        manifest, projector = self.manifest, self.open()
        projector.archive.close()
        event = streams.new(Checkpoint, entries=manifest.count, head=bytes.fromhex(manifest.head), rows=manifest.rows)
        session.say(("audit.checkpoint", [event, *stated(projector.archived_totals, streams.new)]))
        self.project(streams.stored)

    @property
    def manifest(self) -> Manifest:
        return Manifest((self.path / MANIFEST).read_bytes())

    def verify(self) -> Report:
        return verify(self.place)

    def segments(self, stream: str) -> list[Segment]:
        return self.manifest.segments(stream)

    # -- what root can do -----------------------------------------------------------------------

    def table(self, segment: Segment) -> pa.Table:
        return pq.ParquetFile(self.path / segment.file).read()

    def write(self, segment: Segment, table: pa.Table) -> None:
        path = self.path / segment.file
        path.chmod(0o644)
        pq.write_table(table, path)

    def rewrite(self, segment: Segment, column: str, row: int, value: object) -> None:
        """Change one cell of a file."""
        table = self.table(segment)
        values = table[column].to_pylist() if column not in ("ts", "received", "statement_time") else None
        if values is None:
            values = table[column].cast(pa.int64()).to_pylist()
        values[row] = value
        field = table.schema.field(column)
        array = pa.array(values, pa.int64()).cast(field.type) if pa.types.is_timestamp(field.type) else None
        array = array if array is not None else pa.array(values, field.type)
        self.write(segment, table.set_column(table.schema.get_field_index(column), field, array))

    def rehash(self, entries: Sequence[Entry] | None = None) -> None:
        """Write the manifest anew so that it fits the files as they are now, as root would."""
        lines, prev = [], GENESIS
        for n, entry in enumerate(self.manifest.entries if entries is None else entries, start=1):
            line = encode_entry(Entry(n, prev, tuple(self._measure(s) for s in entry.segments), entry.replaces))
            lines.append(line + b"\n")
            prev = line_hash(line)
        (self.path / MANIFEST).write_bytes(b"".join(lines))

    def _measure(self, segment: Segment) -> Segment:
        path = self.path / segment.file
        if not path.exists():
            return segment
        data = path.read_bytes()
        try:
            table = pq.ParquetFile(path).read()
        except pa.ArrowException:
            return msgspec.structs.replace(segment, sha256=hashlib.sha256(data).hexdigest(), size=len(data))
        seqs = table["stream_seq"].to_pylist()
        logs = table["log_index"].to_pylist()
        first, last = min(seqs), max(seqs)
        folder = Path(segment.file).parent
        name = f"{folder}/{first:016d}-{last:016d}-{segment.level}.parquet"
        if name != segment.file:
            os.rename(path, self.path / name)
        return msgspec.structs.replace(
            segment,
            file=name,
            sha256=hashlib.sha256(data).hexdigest(),
            size=len(data),
            rows=table.num_rows,
            messages=table.num_rows - table["payload"].null_count,
            first_seq=first,
            last_seq=last,
            first_log=min(logs),
            last_log=max(logs),
        )


def codes(report: Report) -> set[str]:
    """The codes of what was found wrong."""
    return {p.code for p in report.problems}


def found(report: Report, code: str) -> Problem:
    """The first problem of this code."""
    matching = [p for p in report.problems if p.code == code]
    assert matching, f"no {code} in {[str(p) for p in report.problems]}"
    return matching[0]
