"""Binance's requests for USDT-margined perpetuals (fapi), built by ccxt and read back.

- Signed is the query, or the form, before `&signature=`, as for spot; method, host and path are not in it.  So a key that may trade
  spot as well would let an order for `BTCUSDT` be sent there: give this key futures alone.
- Binance refuses what is older than `RECV_WINDOW_MS`.
- An order opens or closes a position of the account's one-way mode, with the account's leverage: neither `positionSide` nor
  `reduceOnly` nor `closePosition` stands in it, and an account in hedge mode refuses it.  Leverage and margin mode are never signed.
- Contracts are of one unit of the base; `record.symbol` is the unified one of a perpetual, `BTC/USDT:USDT`.

Source: https://developers.binance.com/docs/derivatives/usds-margined-futures/general-info, "Endpoint Security Type", and "Trade".

Trust: whoever holds a signed request can send it as it is within its window; `newClientOrderId` is unique among open orders
alone, so a market order can be sent again until then.
"""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import Any, Final

from tallystick.schemas.bounds import NS_PER_MS
from tallystick.schemas.orders import VenueOrder
from tallystick.schemas.trust import Instrument
from tallystick.venues import VALID_NS, SignedRequest
from tallystick.venues.binance.codes import ORDER_TYPES, RESPONSE_TYPE
from tallystick.venues.binance.request import SignedForm
from tallystick.venues.builder import Builder, Call, market
from tallystick.venues.order import Words

RECV_WINDOW_MS: Final = VALID_NS // NS_PER_MS
API: Final = "/fapi/v1"


class RequestBuilder(Builder):
    """See `builder.Builder`; the key is an Ed25519 key, born in the token."""

    EXCHANGE = "binanceusdm"
    KIND = "ed25519"
    WORDS = Words(buy="BUY", sell="SELL", limit="LIMIT", market="MARKET")
    SYMBOL = re.compile(r"[^\W_a-z]{2,32}")
    OPTIONS = MappingProxyType({"recvWindow": RECV_WINDOW_MS, "warnOnFetchOpenOrdersWithoutSymbol": False})

    def urls(self) -> dict[str, str]:
        """See `Builder`."""
        return {"fapiPrivate": f"https://{self.host}{API}"}

    def market(self, record: Instrument) -> dict[str, Any]:
        """See `Builder`."""
        contract = {
            "type": "swap",
            "spot": False,
            "swap": True,
            "contract": True,
            "linear": True,
            "inverse": False,
            "contractSize": 1,
            "settle": record.quote,
            "settleId": record.quote,
        }
        return market(record, orderTypes=list(ORDER_TYPES)) | contract

    def placing(self, order: VenueOrder, now_ms: int) -> Call:
        """See `Builder`."""
        fields: dict[str, Any] = {
            "symbol": order.symbol,
            "side": order.side,
            "type": order.type,
            "quantity": order.quantity,
            "newClientOrderId": order.client_order_id,
            "newOrderRespType": RESPONSE_TYPE,
        }
        if order.type == self.WORDS.limit:
            fields |= {"price": order.price, "timeInForce": order.time_in_force}
        return Call("POST", f"{API}/order", fields)

    def operation(self, call: Call, now_ms: int) -> SignedForm:
        """See `Builder`."""
        return SignedForm((call.method, call.path), self.host, self.login.api_key, call.fields, now_ms)

    def cancel(self, record: Instrument, client_order_id: str) -> SignedRequest:
        """The request that cancels one order of ours."""
        fields = {"symbol": record.venue_symbol, "origClientOrderId": self.own(client_order_id)}
        return self.build(
            lambda _: Call("DELETE", f"{API}/order", fields),
            lambda exchange: exchange.cancel_order(
                None, record.symbol, {"origClientOrderId": fields["origClientOrderId"]}
            ),
        )

    def cancel_all(self, record: Instrument) -> SignedRequest:
        """The request that cancels every open order of one instrument."""
        return self.build(
            lambda _: Call("DELETE", f"{API}/allOpenOrders", {"symbol": record.venue_symbol}),
            lambda exchange: exchange.cancel_all_orders(record.symbol),
        )

    def query(self, record: Instrument, client_order_id: str) -> SignedRequest:
        """The request that asks what became of one order of ours."""
        fields = {"symbol": record.venue_symbol, "origClientOrderId": self.own(client_order_id)}
        return self.build(
            lambda _: Call("GET", f"{API}/order", fields),
            lambda exchange: exchange.fetch_order(
                None, record.symbol, {"origClientOrderId": fields["origClientOrderId"]}
            ),
        )

    def open_orders(self, record: Instrument) -> SignedRequest:
        """The request that lists the open orders of one instrument."""
        return self.build(
            lambda _: Call("GET", f"{API}/openOrders", {"symbol": record.venue_symbol}),
            lambda exchange: exchange.fetch_open_orders(record.symbol),
        )
