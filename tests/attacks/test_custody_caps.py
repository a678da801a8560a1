"""The operator's caps against a stolen gateway with a strategy's help: both sides, far from the market, small and often."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tallystick.schemas import signing
from tallystick.schemas.ids import EventIds
from tallystick.schemas.trust import Cap, TrustRoot
from tests.support import world
from tests.support.custody import MARKET_PRICE, SECOND, Desk, order, trust_root

HOUR = 3600 * SECOND
MARKET = {"type": "MARKET", "time_in_force": "", "price": ""}


def caps(**changed: tuple[str, str]) -> TrustRoot:
    """The root with these caps (an order, an hour) for XRP and ETH."""
    wanted = {"ETH": ("5", "10"), "XRP": ("100000", "1000000"), **changed}
    return msgspec.structs.replace(
        trust_root(),
        caps=tuple(
            Cap(account="main", asset=asset, max_order=Decimal(most), max_hourly=Decimal(hourly))
            for asset, (most, hourly) in wanted.items()
        ),
    )


def refusal(reply: signing.Reply) -> str:
    assert isinstance(reply, signing.Refused), reply
    return f"{reply.code}: {reply.text}"


def ask(desk: Desk, quantity: str, **changes: str) -> signing.Reply:
    return desk.sign(order=order(quantity=quantity, **changes))


def signed(reply: signing.Reply) -> None:
    assert isinstance(reply, signing.Signed), reply


NEAR, BELOW, ABOVE = "0.0012", "0.0000001", "0.02"


@pytest.mark.parametrize("side", ["BUY", "SELL"])
@pytest.mark.parametrize("price", [NEAR, BELOW, "MARKET"])
def test_an_order_that_names_less_than_the_market_counts_at_the_operators_price(
    tmp_path: Path, side: str, price: str
) -> None:
    desk = Desk(tmp_path, caps())
    how = MARKET if price == "MARKET" else {"price": price}
    most = Decimal(5) / MARKET_PRICE
    assert "CAP_EXCEEDED: order=5.01 ETH, limit=5 ETH" in refusal(ask(desk, f"{most + 1:f}", side=side, **how))
    signed(ask(desk, f"{most:f}", side=side, **how))


@pytest.mark.parametrize("side", ["BUY", "SELL"])
def test_an_order_that_names_more_counts_at_what_it_names(tmp_path: Path, side: str) -> None:
    desk = Desk(tmp_path, caps())
    assert "CAP_EXCEEDED: order=5.02 ETH" in refusal(ask(desk, "251", side=side, price=ABOVE))
    signed(ask(desk, "250", side=side, price=ABOVE))


@pytest.mark.parametrize("side", ["BUY", "SELL"])
@pytest.mark.parametrize("price", [NEAR, BELOW, ABOVE])
def test_the_base_has_a_cap_of_its_own(tmp_path: Path, side: str, price: str) -> None:
    desk = Desk(tmp_path, caps(ETH=("1000000", "1000000"), XRP=("100", "250")))
    assert "CAP_EXCEEDED: order=101 XRP, limit=100 XRP" in refusal(ask(desk, "101", side=side, price=price))
    signed(ask(desk, "100", side=side, price=price))
    signed(ask(desk, "100", side=side, price=price))
    assert "CAP_EXCEEDED: hour=300 XRP, limit=250 XRP" in refusal(ask(desk, "100", side=side, price=price))


@pytest.mark.parametrize("missing", ["ETH", "XRP"])
def test_an_asset_without_a_cap_is_not_moved(tmp_path: Path, missing: str) -> None:
    root = caps()
    desk = Desk(tmp_path, msgspec.structs.replace(root, caps=tuple(c for c in root.caps if c.asset != missing)))
    assert f"CAP_MISSING: the operator signed no cap for {missing}" in refusal(ask(desk, "1"))


def test_many_small_orders_on_both_sides_share_one_hour(tmp_path: Path) -> None:
    desk = Desk(tmp_path, caps(ETH=("5", "0.5")))
    for number in range(50):
        signed(ask(desk, "1", side=("BUY", "SELL")[number % 2], price=(NEAR, BELOW)[number % 2]))
    for side in ("BUY", "SELL"):
        assert "CAP_EXCEEDED: hour=0.51 ETH, limit=0.5 ETH" in refusal(ask(desk, "1", side=side))


def whole_hour(tmp_path: Path, **more: Any) -> Desk:
    """A desk whose hour is used up."""
    desk = Desk(tmp_path, caps(), **more)
    signed(ask(desk, "500"))
    signed(ask(desk, "500", side="SELL"))
    assert "hour=" in refusal(ask(desk, "1"))
    return desk


@pytest.mark.parametrize("step", [2 * HOUR, SECOND])
def test_a_clock_that_is_put_forward_gives_no_hour_back(tmp_path: Path, step: int) -> None:
    desk = whole_hour(tmp_path)
    desk.now += step
    desk.renew()
    assert "hour=" in refusal(ask(desk, "1"))
    # An hour of real time does, whatever the clock says.
    desk.monotonic += HOUR
    desk.lend()
    signed(ask(desk, "1"))


def test_a_clock_that_is_put_back_gives_no_hour_back(tmp_path: Path) -> None:
    desk = whole_hour(tmp_path)
    desk.now -= SECOND // 2
    assert "hour=" in refusal(ask(desk, "1"))


@pytest.mark.parametrize("step", [0, -2 * HOUR, HOUR - 1])
def test_a_restart_gives_no_hour_back(tmp_path: Path, step: int) -> None:
    whole_hour(tmp_path)
    world_now = world.NOW + step
    again = Desk(tmp_path, caps(), now=world_now)
    again.ids = EventIds(world.seed("other ids"))
    assert "hour=" in refusal(ask(again, "1"))
    again.advance(3600)
    again.renew()
    signed(ask(again, "1"))


def lease_caps(**wanted: tuple[str, str]) -> tuple[Cap, ...]:
    return tuple(
        Cap(account="main", asset=asset, max_order=Decimal(most), max_hourly=Decimal(hourly))
        for asset, (most, hourly) in wanted.items()
    )


def test_a_lease_narrows_the_operators_caps_and_never_widens_them(tmp_path: Path) -> None:
    desk = Desk(tmp_path, caps())
    quantity = f"{Decimal(1) / MARKET_PRICE:f}"
    signed(ask(desk, quantity))
    desk.arm(caps=lease_caps(ETH=("1", "4"), XRP=("100000", "1000000")), start=desk.now)
    assert "LEASE_CAP: order=1.0" in refusal(ask(desk, f"{Decimal(1) / MARKET_PRICE + 1:f}"))
    # What was spent before it counts in its hour.
    for _ in range(3):
        signed(ask(desk, quantity))
    assert "LEASE_CAP: order=1.00 ETH, hour=5.00 ETH, limit=1 an order and 4 an hour" in refusal(ask(desk, quantity))
    # An asset that it does not name is not moved.
    desk.arm(caps=lease_caps(ETH=("5", "10")), start=desk.now + 1)
    desk.advance(0.001)
    assert "LEASE_CAP: the lease that holds now lets main move no XRP" in refusal(ask(desk, "100"))


def test_a_wider_lease_that_the_breaker_plays_back_gives_nothing_back(tmp_path: Path) -> None:
    desk = Desk(tmp_path, caps())
    narrow = lease_caps(ETH=("0.1", "10"), XRP=("100000", "1000000"))
    desk.arm(caps=narrow, start=desk.now)
    quantity = f"{Decimal(1) / MARKET_PRICE:f}"
    assert "LEASE_CAP" in refusal(ask(desk, quantity))
    # The one of before was signed as well, and has not ended.
    desk.arm()
    assert "LEASE_CAP" in refusal(ask(desk, quantity))
    # The operator's next word counts.
    desk.arm(start=desk.now + 1)
    desk.advance(0.001)
    signed(ask(desk, quantity))
