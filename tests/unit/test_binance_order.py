"""An intent as Binance's order: one form for each number, one order for each intent."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, get_args, get_type_hints

import pytest

from tallystick.schemas.errors import ConfigError
from tallystick.schemas.ids import EventIds
from tallystick.schemas.orders import Intent, VenueOrder
from tallystick.schemas.trust import Venue
from tallystick.venues import Denied, adapter
from tallystick.venues.binance.order import amounts, venue_order
from tallystick.venues.order import client_order_id, plain
from tests.support.custody import trust_root
from tests.support.world import NOW

RECORD = trust_root().instruments[0]


def intent(**changes: Any) -> Intent:
    fields = {"side": "buy", "type": "limit", "qty": Decimal("1E+2"), "price": Decimal("0.00123450"), "tif": "IOC"}
    return Intent(id=EventIds(bytes(8)).next(NOW), ts=NOW, **(fields | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "text"), [("1E+2", "100"), ("1.500", "1.5"), ("1e-8", "0.00000001"), ("20", "20"), ("0.10", "0.1")]
)
def test_decimals_have_one_plain_form(value: str, text: str) -> None:
    assert plain(Decimal(value)) == text


def test_client_order_id_is_one_to_one() -> None:
    assert client_order_id(bytes(range(16))) == "ts000102030405060708090a0b0c0d0e0f"


def test_the_order_of_an_intent_says_what_the_intent_asks() -> None:
    limit, market = intent(), intent(side="sell", type="market", price=None)
    name = client_order_id(limit.id)
    assert venue_order(RECORD, limit) == VenueOrder("XRPETH", "BUY", "LIMIT", "IOC", "100", "0.0012345", name)
    assert venue_order(RECORD, market) == VenueOrder("XRPETH", "SELL", "MARKET", "", "100", "", name)
    assert amounts(RECORD, venue_order(RECORD, limit)) == (Decimal(100), Decimal("0.0012345"))
    assert amounts(RECORD, venue_order(RECORD, market)) == (Decimal(100), None)


def test_an_order_of_another_instrument_is_refused() -> None:
    with pytest.raises(Denied, match="FIELD_MISMATCH"):
        amounts(trust_root().instruments[1], venue_order(RECORD, intent()))


def test_every_kind_of_venue_that_a_trust_root_may_name_has_its_adapter() -> None:
    for kind in get_args(get_type_hints(Venue)["kind"]):
        assert adapter(kind).PING
    with pytest.raises(ConfigError, match="VENUE_KIND"):
        adapter("mtgox")
