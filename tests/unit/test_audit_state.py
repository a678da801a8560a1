"""What audit keeps between two starts: little, whatever the history, and what it says of the next message is the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from tallystick.components.audit.projector import Projector
from tallystick.record.archive import Archive
from tallystick.record.place import load_verifiers
from tests.support.archive import Session, Story, Streams, Vault


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(tmp_path / "deployment")


def take_all(vault: Vault, streams: Streams) -> Projector:
    """All messages judged and archived; the projector is left open."""
    projector = vault.open()
    for message in streams.stored:
        if message.stream_seq > projector.positions[message.stream]:
            projector.take(message, projector.open(message))
    projector.flush()
    return projector


def test_a_start_reads_what_came_after_the_saved_state_and_no_history(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    story = Story()
    story.streams.ticks(story.market, 40)
    projector = take_all(vault, story.streams)
    projector.archive.save_state(projector.dump())
    projector.archive.close()
    story.streams.ticks(story.market, 2, messages=1)
    take_all(vault, story.streams).archive.close()

    read: list[int] = []
    archived = Projector._archived

    def counted(self: Projector, stream: str, from_log: int) -> object:
        for item in archived(self, stream, from_log):
            read.append(item[0])
            yield item

    monkeypatch.setattr(Projector, "_archived", counted)
    again = Projector(Archive(vault.path), load_verifiers(vault.place))
    again.archive.close()
    assert len(read) == 2
    assert again.log.next_index == len(story.streams.stored)


def boots(streams: Streams, count: int) -> list[Session]:
    """So many boots of market data, each with two flushes, its heads and its end."""
    made = []
    for number in range(count):
        session = streams.session("market-data", 100 + number)
        streams.ticks(session, 2, messages=1, events=1)
        session.heartbeat()
        streams.end(session)
        made.append(session)
    return made


def test_boots_that_ended_take_next_to_no_room(tmp_path: Path) -> None:
    sizes = []
    for count in (5, 45):
        vault, streams = Vault(tmp_path / str(count)), Streams()
        boots(streams, count)
        projector = take_all(vault, streams)
        sizes.append(len(projector.dump()))
        projector.archive.close()
    # A credential that was issued, a boot that ended, and what the authority's own chain remembers of saying so; a chain
    # that is kept takes over 500.
    assert (sizes[1] - sizes[0]) / 40 < 160


def test_what_an_ended_boot_says_after_a_restart_is_late_and_nothing_looks_lost(vault: Vault) -> None:
    streams = Streams()
    ended = boots(streams, 3)
    projector = take_all(vault, streams)
    projector.archive.save_state(projector.dump())
    projector.archive.close()
    streams.ticks(ended[1], 1)
    ended[1].heartbeat()
    projector = take_all(vault, streams)
    assert projector.log.dropped() == []
    assert projector.log.torn() == []
    projector.archive.close()
    report = vault.verify()
    assert report.problems == []
    assert report.incidents == {"LATE": 3}
