"""What a replay of an archive promises: everything verified again, in one order, and nothing played that is not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tallystick.replay import reader as reading
from tallystick.replay import show
from tallystick.replay.reader import ArchiveReader
from tallystick.replay.selection import Selection, time_text
from tallystick.replay.verify import Examined, Failure, Played
from tallystick.schemas.errors import Malformed, TallystickError, Unverified
from tallystick.schemas.ids import id_text
from tallystick.schemas.seal import ChainWriter, Verifier
from tallystick.schemas.security import Notice
from tallystick.schemas.subjects import parse_subject
from tests.support.archive import Session, Story, Streams, Vault
from tests.support.forge import encoded, samples, sealed
from tests.support.world import NOW, credential, key, trust_root


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Story, Vault]:
    story = Story()
    vault = Vault(tmp_path_factory.mktemp("replay") / "desk")
    vault.project(story.streams.stored)
    return story, vault


@pytest.fixture
def vault(recorded: tuple[Story, Vault], tmp_path: Path) -> Vault:
    """A copy that may be damaged."""
    return recorded[1].copy(tmp_path / "desk")


def read(vault: Vault, **selection: object) -> list[Examined]:
    return list(ArchiveReader(vault.place, Selection(**selection)))  # type: ignore[arg-type]


def played(items: list[Examined]) -> list[Played]:
    assert not [item for item in items if isinstance(item, Failure)]
    return [item for item in items if isinstance(item, Played)]


def failed(items: list[Examined]) -> list[str]:
    return [item.code for item in items if isinstance(item, Failure)]


def test_everything_archived_is_read_once_as_it_was_sealed(recorded: tuple[Story, Vault]) -> None:
    story, vault = recorded
    items = played(read(vault))
    stored = {(m.stream, m.stream_seq): (m.subject, m.payload) for m in story.streams.stored}
    assert {(p.stream, p.seq): (p.verified.subject.text, p.verified.payload) for p in items} == stored


def test_a_stream_keeps_its_order_and_streams_are_merged_by_statement_time(recorded: tuple[Story, Vault]) -> None:
    items = played(read(recorded[1]))
    times = [p.time for p in items]
    assert times == sorted(times)
    for stream in {p.stream for p in items}:
        seqs = [p.seq for p in items if p.stream == stream]
        assert seqs == sorted(seqs)
    again = [(p.stream, p.seq) for p in played(read(recorded[1]))]
    assert again == [(p.stream, p.seq) for p in items]


def test_messages_stated_at_the_same_time_come_causes_first(tmp_path: Path) -> None:
    streams = Streams()
    market, alpha = streams.session("market-data"), streams.session("strategy-alpha")
    at = streams.now
    for session, subject, kind in (
        (alpha, "signal.alpha.paper.XRP-ETH", 3),
        (market, "md.trade.paper.XRP-ETH", 0),
    ):
        event = samples()[kind][2]
        streams.now = at
        session.say((subject, [event]))
    vault = Vault(tmp_path / "desk")
    vault.project(streams.stored)
    items = played(read(vault, patterns=("md.>", "signal.>")))
    assert [p.stream for p in items] == ["MARKET", "SIGNALS"]
    assert len({p.time for p in items}) == 1


@pytest.mark.parametrize(
    ("selection", "count"),
    [
        ({"patterns": ("md.trade.*.XRP-ETH",)}, 4),
        ({"patterns": ("order.intent.>", "fill.>")}, 3),
        ({"patterns": ("order.decision.alpha.paper.XRP-ETH",)}, 2),
        ({"patterns": ("order.decision.beta.>",)}, 0),
        ({"streams": ("ORDERS", "SIGNALS")}, 9),
        ({"streams": ("ORDERS",), "first": 3, "last": 5}, 3),
        ({"streams": ("ORDERS",), "first": 8}, 1),
        ({"streams": ("MARKET",), "patterns": ("order.>",)}, 0),
    ],
)
def test_what_is_asked_for_is_what_is_played(
    recorded: tuple[Story, Vault], selection: dict[str, object], count: int
) -> None:
    assert len(played(read(recorded[1], **selection))) == count


def test_a_window_of_time_includes_its_start_and_excludes_its_end(recorded: tuple[Story, Vault]) -> None:
    everything = played(read(recorded[1]))
    for since, until in ((5, 20), (0, 1), (27, 28), (3, 3 + 9)):
        a = everything[since].time
        b = everything[until].time if until < len(everything) else everything[-1].time + 1
        found = [(p.stream, p.seq) for p in played(read(recorded[1], since=a, until=b))]
        assert found == [(p.stream, p.seq) for p in everything if a <= p.time < b]
        assert found


def test_row_groups_outside_the_window_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams()
    market = streams.session("market-data")
    streams.ticks(market, 6)
    vault = Vault(tmp_path / "desk")
    vault.project(streams.stored, flush=3)
    rows: list[int] = []
    selected = reading._selected

    def counted(file: pq.ParquetFile, selection: Selection) -> list[int]:
        found = selected(file, selection)
        rows.append(len(found))
        return found

    monkeypatch.setattr(reading, "_selected", counted)
    last = played(read(vault, streams=("MARKET",)))[-1]
    everything, rows[:] = len(rows), []
    assert len(played(read(vault, streams=("MARKET",), since=last.time))) == 2
    assert len(rows) == everything
    assert sum(rows) < everything


# -- what an attacker sent, then --------------------------------------------------------------------


def test_what_the_audit_judged_without_effect_is_set_aside_and_counted(tmp_path: Path) -> None:
    streams = Streams()
    market, thief = streams.session("market-data"), Session(streams, "strategy-alpha", 9)
    streams.ticks(market, 1)
    thief.say(("signal.alpha.paper.XRP-ETH", [samples()[3][2]]))  # minted with a stolen role key, never issued
    streams.store("md.trade.paper.XRP-ETH", b"junk")
    again = streams.stored[-3]
    streams.store(again.subject, again.payload)  # a replayed message
    streams.end(market, revoke=True)
    streams.ticks(market, 1)
    vault = Vault(tmp_path / "desk")
    vault.project(streams.stored)
    source = ArchiveReader(vault.place, Selection(patterns=("md.>", "signal.>")))
    assert len(played(list(source))) == 2
    aside = source.judge.tally.aside
    assert aside["UNLISTED"] == 1
    assert aside["LATE"] == 2
    assert sum(aside.values()) == 5


@pytest.mark.parametrize(("column", "value"), [("status", "ok"), ("code", "")])
def test_an_intruders_message_relabelled_as_good_is_not_played(tmp_path: Path, column: str, value: str) -> None:
    streams = Streams()
    thief = Session(streams, "strategy-alpha", 9)
    thief.say(("signal.alpha.paper.XRP-ETH", [samples()[3][2]]))
    vault = Vault(tmp_path / "desk")
    vault.project(streams.stored)
    vault.rewrite(vault.segments("SIGNALS")[0], column, 0, value)
    vault.rehash()
    items = read(vault, streams=("SIGNALS",))
    assert not [item for item in items if isinstance(item, Played)]
    assert failed(items) == (["UNLISTED"] if column == "status" else [])


# -- a changed archive ------------------------------------------------------------------------------


def test_a_changed_file_is_named(vault: Vault) -> None:
    segment = vault.segments("ORDERS")[0]
    vault.rewrite(segment, "data", 0, "{}")
    items = read(vault, streams=("ORDERS",))
    assert failed(items) == ["FILE_HASH"]
    assert isinstance(items[0], Failure)
    assert segment.file in str(items[0])


def test_a_changed_price_under_a_fitting_manifest_is_found_at_its_position(vault: Vault) -> None:
    segment = vault.segments("MARKET")[0]
    payload = bytearray(next(p for p in vault.table(segment)["payload"].to_pylist() if p))
    at = bytes(payload).index(b"0.00141342")
    payload[at : at + 10] = b"0.00999999"
    vault.rewrite(segment, "payload", 0, bytes(payload))
    vault.rehash()
    items = read(vault, streams=("MARKET",))
    assert failed(items) == ["MERKLE_ROOT"]
    assert str(items[0]).startswith("MERKLE_ROOT at MARKET 1 (md.trade.paper.XRP-ETH)")
    assert len([i for i in items if isinstance(i, Played)]) == 6


def test_a_message_under_another_subject_is_found(vault: Vault) -> None:
    segment = vault.segments("MARKET")[0]
    vault.rewrite(segment, "subject", 0, "md.trade.paper.BTC-USDT")
    vault.rehash()
    assert failed(read(vault, streams=("MARKET",))) == ["MERKLE_ROOT"]


def test_a_statement_time_changed_in_its_column_moves_no_message_out_of_its_window(vault: Vault) -> None:
    segment = vault.segments("ORDERS")[0]
    vault.rewrite(segment, "statement_time", 0, NOW - 10**12)
    vault.rehash()
    items = read(vault, streams=("ORDERS",), since=NOW - 10**13, until=NOW)
    assert items == []  # it claims to lie there, and is not what was signed


def test_swapped_messages_are_found(vault: Vault) -> None:
    segment = vault.segments("ORDERS")[0]
    table = vault.table(segment)
    order = [*range(table.num_rows)]
    order[0], order[1] = order[1], order[0]
    swapped = table.take(pa.array(order))
    seqs = table.schema.get_field_index("stream_seq")
    vault.write(segment, swapped.set_column(seqs, table.schema.field(seqs), table["stream_seq"]))
    vault.rehash()
    shown = read(vault, streams=("ORDERS",))
    assert [p.verified.subject.kind for p in shown if isinstance(p, Played)][:2] == ["order.decision", "order.intent"]
    # Two chains may be stored in either order; what the broker said is the audit's to verify (its log indexes).
    table = vault.table(segment)
    vault.write(segment, pa.concat_tables([table.slice(0, 2), table.slice(3)]))
    vault.rehash()
    with pytest.raises(Unverified, match="MANIFEST_EXTENT"):
        read(vault, streams=("ORDERS",))


def test_a_file_with_more_messages_than_its_numbers_hold_is_not_played(vault: Vault) -> None:
    segment = vault.segments("ORDERS")[0]
    table = vault.table(segment)
    vault.write(segment, pa.concat_tables([table.slice(0, 1), table]))
    with pytest.raises(Malformed, match=r"SEGMENT: .*6 messages in 6 rows .* sequences 1 to 5"):
        vault.rehash()


def test_a_message_of_another_deployment_is_refused(tmp_path: Path) -> None:
    streams = Streams()
    ours, session = credential("market-data")
    other = msgspec.structs.replace(ours, deployment="other")  # even under the same keys
    [(subject, payload)] = ChainWriter(other, session, "MARKET").seal(
        [encoded("md.trade.paper.XRP-ETH", samples()[0][2])], NOW
    )
    streams.store(subject, payload)
    vault = Vault(tmp_path / "desk")
    vault.project(streams.stored)
    vault.rewrite(vault.segments("MARKET")[0], "status", 0, "ok")
    vault.rehash()
    assert failed(read(vault, streams=("MARKET",))) == ["DEPLOYMENT"]


def test_a_missing_segment_and_a_broken_manifest_stop_the_replay(vault: Vault) -> None:
    (vault.path / vault.segments("ORDERS")[0].file).unlink()
    with pytest.raises(Unverified, match="FILE_MISSING"):
        read(vault, streams=("ORDERS",))
    manifest = vault.path / "manifest.jsonl"
    manifest.write_bytes(manifest.read_bytes().replace(b'"level":0', b'"level":1', 1))
    with pytest.raises(TallystickError, match="MANIFEST"):
        read(vault)


def test_another_root_key_verifies_nothing(vault: Vault) -> None:
    vault.place.root.write_text(key("somebody").public.hex() + "\n")
    with pytest.raises(TallystickError):
        read(vault)


def test_segments_compacted_while_they_are_read_are_read_on_in_what_replaced_them(tmp_path: Path) -> None:
    streams = Streams()
    market = streams.session("market-data")
    streams.ticks(market, 40, messages=1)
    vault = Vault(tmp_path / "desk")
    vault.project(streams.stored, flush=1)
    source: Iterator[Examined] = iter(ArchiveReader(vault.place, Selection(streams=("MARKET",))))
    first = next(source)
    projector = vault.open()
    assert projector.archive.compact("MARKET", 0) is not None
    assert projector.archive.sweep(10**30) > 0
    projector.archive.close()
    seqs = [p.seq for p in played([first, *source])]
    assert seqs == list(range(1, 41))


# -- what is shown ----------------------------------------------------------------------------------


def test_a_json_line_holds_everything_exactly(recorded: tuple[Story, Vault]) -> None:
    story, vault = recorded
    fill = next(p for p in played(read(vault)) if p.verified.subject.kind == "fill")
    [line] = show.json_lines(fill)
    shown = json.loads(line)
    assert shown["data"]["price"] == "0.00141"
    assert shown["data"]["commission"] == str(Decimal("0.00001"))
    assert shown["data"]["intent_id"] == id_text(story.intent.id)
    assert shown["id"] == id_text(story.fill.id)
    assert shown["causes"] == [id_text(c) for c in story.fill.causes]
    assert shown["leaf"] == fill.verified.leaf.hex()
    assert (shown["time"], shown["time_ns"]) == (time_text(fill.time), fill.time)
    assert list(shown) == [
        "time", "time_ns", "stream", "seq", "subject", "component", "boot", "chain_seq", "chain_index", "pos", "leaf",
        "statement", "position", "type", "id", "ts", "causes", "at", "data",
    ]  # fmt: skip


def test_a_text_line_says_when_where_who_what(recorded: tuple[Story, Vault]) -> None:
    intent = next(p for p in played(read(recorded[1])) if p.verified.subject.kind == "order.intent")
    [line] = show.lines(intent)
    assert line == (
        f"{time_text(intent.time)}  order.intent.alpha.paper.XRP-ETH  strategy-alpha  order.intent/1  "
        "side=buy type=limit qty=10 price=0.00141 tif=GTC"
    )


@pytest.mark.parametrize("nasty", ["\x1b[2J", "\x9b31m", "\u202egrot", "a\nb  forged line", "grüße"])
def test_nothing_that_a_component_wrote_acts_on_a_terminal(nasty: str) -> None:
    streams = Streams()
    gateway = streams.session("gateway")
    event = streams.new(Notice, code="X", text=nasty, evidence=nasty.encode())
    [(subject, payload)] = gateway.seal(("guard.gateway", [event]))
    message = Played("GUARD", 1, 0, Verifier(streams.trust).open(subject, "GUARD", payload))
    for line in (*show.lines(message), *show.json_lines(message)):
        assert line.isascii()
        assert line.isprintable()
    [line] = show.json_lines(message)
    assert json.loads(line)["data"]["text"] == nasty


@pytest.mark.parametrize("number", range(len(samples())))
def test_every_type_of_event_can_be_shown(number: int) -> None:
    component, subject, event = samples()[number]
    [(_, payload)] = sealed(component, encoded(subject, event))
    stream = parse_subject(subject).stream
    message = Played(stream, 1, 0, Verifier(trust_root()).open(subject, stream, payload))
    [text], [line] = show.lines(message), show.json_lines(message)
    shown = json.loads(line)
    assert f"  {event.__struct_config__.tag}  " in text
    assert set(shown["data"]) == set(event.__struct_fields__) - {"id", "ts", "causes", "at"}
    assert shown["at"] == {"MARKET": 41, "ORDERS": 7}
