"""The peer that is a library of its own: `eventsourcing` on SQLite, as its users use it.

An aggregate's events are collected and saved 100 a transaction (WAL, synchronous); the notification log is read in
sections and each notification made an event again.  Nothing is signed, sealed or verified.
"""

from __future__ import annotations

import time
from decimal import Decimal
from pathlib import Path
from uuid import UUID

from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event

BATCH = 100
SECTION = 1_000
SAVED = "`eventsourcing` on SQLite, 100 a transaction"
READ = "`eventsourcing` notification log, decoded"
READ_RAW = "`eventsourcing` notification log, not decoded"


class Market(Aggregate):
    """One instrument; every trade is an event."""

    @event("Traded")
    def trade(self, trade_id: int, price: Decimal, qty: Decimal, time: int, *, buyer_is_maker: bool) -> None:
        self.last = (trade_id, price, qty, time, buyer_is_maker)


class Ledger(Application[UUID]):
    """The application: its repository and its notification log."""

    log_section_size = SECTION


def ledger(folder: Path) -> Ledger:
    """An application on a database file."""
    return Ledger({"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": str(folder / "eventsourcing.db")})


def save(app: Ledger, count: int) -> float:
    """Events a second, made, encoded and committed."""
    market = Market()
    began = time.perf_counter()
    for _ in range(count // BATCH):
        for number in range(BATCH):
            market.trade(number, Decimal("0.00141342"), Decimal("23.00"), number, buyer_is_maker=True)
        app.save(market)
    return count // BATCH * BATCH / (time.perf_counter() - began)


def read(app: Ledger, *, decode: bool) -> float:
    """Events a second out of the notification log."""
    start, count = 1, 0
    began = time.perf_counter()
    while section := app.notification_log.select(start=start, limit=SECTION):
        if decode:
            for notification in section:
                app.mapper.to_domain_event(notification)
        count += len(section)
        start = section[-1].id + 1
    return count / (time.perf_counter() - began)
