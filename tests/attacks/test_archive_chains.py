"""What thieves of keys, crashes and a broker that drops messages leave in an archive: each has its name."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tests.support.archive import Session, Story, Streams, Vault, found

# ---------------------------------------------------------------- stolen keys


def test_a_stolen_role_key_adds_chains_that_count_as_nothing(tmp_path: Path) -> None:
    vault, story = Vault(tmp_path / "deployment"), Story()
    thief = Session(story.streams, "market-data", number=66)
    story.streams.ticks(thief, 2)
    judged = vault.project(story.streams.stored)
    assert [j.status for j in judged][-4:] == ["unlisted"] * 4
    report = vault.verify()
    assert report.clean
    assert report.incidents == {"UNLISTED": 4}


def test_a_stolen_session_key_shows_as_a_fork(tmp_path: Path) -> None:
    vault, story = Vault(tmp_path / "deployment"), Story()
    double = Session(story.streams, "market-data")
    double.boot, double.credential, double.signer = (
        story.market.boot,
        story.market.credential,
        story.market.signer,
    )
    story.streams.ticks(double, 1)
    vault.project(story.streams.stored)
    report = vault.verify()
    problem = found(report, "FORK")
    assert problem.stream == "MARKET"
    assert "stolen key" in problem.text
    assert report.status["refused"] == 2


def test_what_comes_after_a_revocation_is_late_whatever_time_it_claims(tmp_path: Path) -> None:
    vault, story = Vault(tmp_path / "deployment"), Story()
    again = msgspec.structs.replace(story.intent, id=story.streams.ids.next(story.streams.now))
    back_dated = story.strategy.seal(("order.intent.alpha.paper.XRP-ETH", [again]))
    story.streams.end(story.strategy, revoke=True)
    for subject, payload in back_dated:
        story.streams.store(subject, payload)
    judged = vault.project(story.streams.stored)
    assert judged[-1].status == "late"
    report = vault.verify()
    assert report.clean
    assert report.incidents == {"LATE": 1}


def test_a_replayed_or_redirected_message_is_kept_without_effect(tmp_path: Path) -> None:
    vault, story = Vault(tmp_path / "deployment"), Story()
    old = next(m for m in story.streams.stored if m.subject.startswith("order.intent"))
    story.streams.store(old.subject, old.payload)
    story.streams.store("order.intent.beta.paper.XRP-ETH", old.payload)
    story.streams.store("signal.alpha.paper.XRP-ETH", old.payload)
    judged = vault.project(story.streams.stored)
    assert [(j.status, j.code) for j in judged[-3:]] == [
        ("refused", "REPLAY"),
        ("refused", "MERKLE_ROOT"),
        ("refused", "STATEMENT_STREAM"),
    ]
    report = vault.verify()
    assert report.clean
    assert report.status["refused"] == 3


# ---------------------------------------------------------------- holes and torn ends


def one_flush(streams: Streams, session: Session) -> list[tuple[str, bytes]]:
    return session.seal(*((f"md.trade.paper.{s}", [streams.trade(1)]) for s in ("XRP-ETH", "BTC-USDT", "ETH-USDT")))


@pytest.mark.parametrize("revoke", [False, True], ids=["ended", "revoked"])
def test_a_crash_in_the_middle_of_a_flush_is_torn_and_clean(tmp_path: Path, revoke: bool) -> None:
    vault, story = Vault(tmp_path / "deployment"), Story()
    flush = one_flush(story.streams, story.market)
    story.streams.store(*flush[1])
    story.streams.end(story.market, revoke=revoke)
    vault.project(story.streams.stored)
    report = vault.verify()
    assert report.clean
    [torn] = report.torn
    assert (torn.component, torn.stream, torn.missing) == ("market-data", "MARKET", (0, 2))


def test_a_replaced_boot_leaves_its_last_flush_torn(tmp_path: Path) -> None:
    vault, story = Vault(tmp_path / "deployment"), Story()
    story.streams.store(*one_flush(story.streams, story.market)[0])
    story.streams.session("market-data", number=2)
    vault.project(story.streams.stored)
    report = vault.verify()
    assert report.clean
    assert [t.missing for t in report.torn] == [(1, 2)]


def test_a_flush_of_a_live_boot_that_is_not_complete_yet_is_neither(tmp_path: Path) -> None:
    vault, story = Vault(tmp_path / "deployment"), Story()
    story.streams.store(*one_flush(story.streams, story.market)[0])
    vault.project(story.streams.stored)
    report = vault.verify()
    assert report.clean
    assert report.torn == []


def test_a_hole_anywhere_but_at_the_end_is_tampering(tmp_path: Path) -> None:
    vault, story = Vault(tmp_path / "deployment"), Story()
    flush = one_flush(story.streams, story.market)
    story.streams.store(*flush[0])
    story.streams.store(*flush[2])
    story.streams.ticks(story.market, 1)
    at = story.streams.stored[-2]
    story.streams.end(story.market)
    vault.project(story.streams.stored)
    report = vault.verify()
    problem = found(report, "HOLE")
    assert (problem.stream, problem.stream_seq) == ("MARKET", at.stream_seq)
    assert "index 1 (1 of 3 messages)" in problem.text


def test_a_torn_end_that_a_heartbeat_had_called_stored_is_tampering(tmp_path: Path) -> None:
    vault, story = Vault(tmp_path / "deployment"), Story()
    story.streams.store(*one_flush(story.streams, story.market)[0])
    story.market.heartbeat()
    story.streams.end(story.market)
    vault.project(story.streams.stored)
    assert "index 1, 2 (2 of 3 messages)" in found(vault.verify(), "DROPPED").text


def test_a_missing_flush_is_tampering(tmp_path: Path) -> None:
    vault, story = Vault(tmp_path / "deployment"), Story()
    one_flush(story.streams, story.market)
    story.streams.ticks(story.market, 1)
    vault.project(story.streams.stored)
    assert "missing" in found(vault.verify(), "HOLE").text


def test_a_chain_goes_on_across_renewals_and_ends_with_its_closing_statement(tmp_path: Path) -> None:
    vault, story = Vault(tmp_path / "deployment"), Story()
    story.market.renew("2")
    story.streams.issue(story.market)
    story.streams.ticks(story.market, 2)
    story.market.say(("md.trade.paper.XRP-ETH", []), close=True)
    story.streams.end(story.market)
    vault.project(story.streams.stored)
    report = vault.verify()
    assert report.clean
    assert report.torn == []
    assert report.incidents == {}
