"""The audit process on a real broker: everything archived in time, the bad kept as evidence, crashes survived."""

from __future__ import annotations

import os
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from tallystick.components.audit.main import Audit
from tallystick.record.manifest import read_manifest
from tallystick.record.place import Place
from tallystick.record.report import Report
from tallystick.record.verify import verify
from tallystick.runtime.bus.link import Outgoing
from tallystick.runtime.deployment.service import ServiceContext
from tallystick.schemas.market import Trade
from tallystick.schemas.seal import Verifier
from tallystick.schemas.security import CredentialIssued, Notice
from tallystick.schemas.trust import ROOT_KEY_NAME, sign_document
from tests.support.bus import TestBus, running_bus
from tests.support.runtime import Desk
from tests.support.waiting import until
from tests.support.world import key


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[TestBus]:
    # One for each test: a checkpoint of another archive would, rightly, not fit this one.
    with running_bus(tmp_path / "bus") as running:
        yield running


class Hall:
    """An audit process over one archive, started and stopped (or cut off) at will."""

    def __init__(self, desk: Desk, directory: Path) -> None:
        self.desk = desk
        self.path = directory / "archive"
        (self.path / "trust").mkdir(parents=True, exist_ok=True)
        note = sign_document(desk.trust, (ROOT_KEY_NAME, key("operator-root")))
        (self.path / "trust" / "root-1.note").write_text(note)
        root = directory / "operator-root.pub"
        root.write_text(key("operator-root").public.hex())
        self.place = Place(self.path, root)
        self.authority: ServiceContext | None = None

    async def issue(self, context: ServiceContext) -> None:
        if self.authority is None:
            self.authority = await self.desk.context("authority")
            self.authority.open()
            await self.issue(self.authority)
        c = context.link.session.credential
        event = self.authority.new(
            CredentialIssued,
            boot=c.boot,
            session_key=c.session_key,
            credential_hash=c.digest,
            issued_at=c.issued_at,
            expires_at=c.expires_at,
            method="certificate",
            certificate=bytes(32),
        )
        await self.authority.publish(f"cred.{context.component}", event)

    async def component(self, name: str) -> ServiceContext:
        context = await self.desk.context(name)
        await self.issue(context)
        return context

    async def start(self) -> tuple[Audit, ServiceContext]:
        context = await self.component("audit")
        audit = Audit(self.path, [Verifier(self.desk.trust)])
        await audit.start(context)
        context.open()
        await context.caught_up()
        return audit, context

    def rows(self) -> int:
        return read_manifest(self.path).rows


def trades(context: ServiceContext, count: int) -> list[Trade]:
    return [
        context.new(Trade, trade_id=i + 1, price=Decimal("0.0014"), qty=Decimal(2), time=i, buyer_is_maker=True)
        for i in range(count)
    ]


async def test_every_event_is_archived_within_two_seconds_and_verifies(desk: Desk, tmp_path: Path) -> None:
    hall = Hall(desk, tmp_path)
    audit, context = await hall.start()
    market = await hall.component("market-data")
    market.open()
    await market.publish("md.trade.paper.XRP-ETH", *trades(market, 500))
    seq = audit.ctx.position("MARKET")
    took = await until(lambda: read_manifest(hall.path).resume("MARKET") >= max(seq, 1), "archived", 4.0)
    assert took < 2.0
    await until(lambda: context.metrics.snapshot().get("messages_ok", 0) > 8, "heartbeats")
    await audit.ctx.release()
    report = verify(hall.place)
    assert report.problems == []
    assert report.status["ok"] == report.messages
    assert report.events >= 500


async def test_unlisted_sessions_and_garbage_are_kept_as_evidence_and_noticed(desk: Desk, tmp_path: Path) -> None:
    hall = Hall(desk, tmp_path)
    audit, _ = await hall.start()
    codes: set[str] = set()
    breaker = await hall.component("console")
    breaker.subscribe("guard.audit", lambda r: codes.update(e.code for e in r.events if isinstance(e, Notice)))
    breaker.open()
    thief = await desk.context("market-data")
    await thief.publish("md.trade.paper.XRP-ETH", *trades(thief, 3))
    connection = await thief.link.connection()
    await (
        await connection.publish(Outgoing("md.trade.paper.XRP-ETH", b"not a sealed message", os.urandom(8).hex()))
    ).acknowledged()
    await until(lambda: {"UNLISTED", "PAYLOAD"} <= codes, "both notices")
    await audit.ctx.release()
    report: Report = verify(hall.place)
    assert report.problems == []
    assert report.incidents["UNLISTED"] >= 1
    assert report.incidents["PAYLOAD"] >= 1


async def test_killed_without_warning_it_goes_on_where_the_archive_ends(desk: Desk, tmp_path: Path) -> None:
    hall = Hall(desk, tmp_path)
    audit, context = await hall.start()
    market = await hall.component("market-data")
    market.open()
    await market.publish("md.trade.paper.XRP-ETH", *trades(market, 50))
    await until(lambda: hall.rows() > 50, "first rows")
    # As by kill -9: nothing of what is in memory is written any more.
    audit._stopping = True
    audit.archive.close()
    context._at_stop.clear()
    desk.contexts.remove(context)
    await context.close()
    for _ in range(5):
        await market.publish("md.trade.paper.BTC-USDT", *trades(market, 50))
    again, _ = await hall.start()
    await until(
        lambda: (
            read_manifest(hall.path).resume("MARKET") == again.projector.positions["MARKET"]
            and again.ctx.position("MARKET") == again.projector.positions["MARKET"]
        ),
        "caught up",
    )
    await again.ctx.release()
    report = verify(hall.place)
    assert report.problems == []
