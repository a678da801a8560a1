r"""Binance's words: parameters into orders, orders into JSON.  Pure.

Numbers come as plain decimals (`^([0-9]{1,20})(\.[0-9]{1,20})?$`: no sign, exponent, NaN or blank) with at most 8
places, and leave with exactly 8.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final, TypeVar

from tallystick.components.paper_exchange.access import Key, Limits
from tallystick.components.paper_exchange.orders import (
    PLACES,
    SYMBOL,
    Balance,
    Instrument,
    NewOrder,
    Order,
    OrderType,
    Refused,
    Report,
    Side,
    TimeInForce,
    Trade,
)

Json = dict[str, Any]
Parameters = Mapping[str, str]

_DECIMAL = re.compile(r"([0-9]{1,20})(?:\.([0-9]{1,20}))?")
_SYMBOL_RANGE: Final = r"^[\\w\\-._&&[^a-z]]{1,50}$"
_CLIENT_ID: Final = r"^[a-zA-Z0-9-_]{1,36}$"
_SIDES: Final[dict[str, Side]] = {"BUY": "BUY", "SELL": "SELL"}
_TYPES: Final[dict[str, OrderType]] = {"LIMIT": "LIMIT", "LIMIT_MAKER": "LIMIT_MAKER", "MARKET": "MARKET"}
_TIFS: Final[dict[str, TimeInForce]] = {"GTC": "GTC", "IOC": "IOC", "FOK": "FOK"}
_RESPONSES: Final = {"ACK": "ACK", "RESULT": "RESULT", "FULL": "FULL"}
# Binance's only mode here, and its default.
_SELF_TRADE: Final = "EXPIRE_MAKER"
# The longest answer to a query, as at Binance.
MAX_LIST: Final = 1_000
_T = TypeVar("_T")


def _mandatory(parameters: Parameters, name: str) -> str:
    value = parameters.get(name)
    if value is None:
        raise Refused(-1102, f"Mandatory parameter '{name}' was not sent, was empty/null, or malformed.")
    return value


def _decimal(parameters: Parameters, name: str) -> Decimal | None:
    text = parameters.get(name)
    if text is None:
        return None
    match = _DECIMAL.fullmatch(text)
    if match is None:
        raise Refused(
            -1100,
            f"Illegal characters found in parameter '{name}'; legal range is '^([0-9]{{1,20}})(\\.[0-9]{{1,20}})?$'.",
        )
    if len(match.group(2) or "") > PLACES:
        raise Refused(-1111, f"Parameter '{name}' has too much precision.")
    return Decimal(text)


def integer(parameters: Parameters, name: str) -> int | None:
    """An optional whole number.  Raises `Refused` -1100."""
    text = parameters.get(name)
    if text is None:
        return None
    if not re.fullmatch("[0-9]{1,18}", text):
        raise Refused(-1100, f"Illegal characters found in parameter '{name}'; legal range is '^[0-9]{{1,18}}$'.")
    return int(text)


def symbol(parameters: Parameters) -> str:
    """The mandatory symbol, as it is.  Raises `Refused` -1102, -1100."""
    text = _mandatory(parameters, "symbol")
    if not SYMBOL.fullmatch(text):
        raise Refused(-1100, f"Illegal characters found in parameter 'symbol'; legal range is '{_SYMBOL_RANGE}'.")
    return text


def client_id(parameters: Parameters, name: str) -> str | None:
    """An optional client order id.  Raises `Refused` -1100."""
    text = parameters.get(name)
    if text is not None and not re.fullmatch("[a-zA-Z0-9_-]{1,36}", text):
        raise Refused(-1100, f"Illegal characters found in parameter '{name}'; legal range is '{_CLIENT_ID}'.")
    return text


def which_order(parameters: Parameters) -> tuple[int | None, str | None]:
    """`(orderId, origClientOrderId)`, at least one of them.  Raises `Refused` -1102, -1100."""
    order_id, client = integer(parameters, "orderId"), client_id(parameters, "origClientOrderId")
    if order_id is None and client is None:
        raise Refused(-1102, "Param 'origClientOrderId' or 'orderId' must be sent, but both were empty/null!")
    return order_id, client


def _choice(values: Mapping[str, _T], text: str, number: int, message: str) -> _T:
    value = values.get(text)
    if value is None:
        raise Refused(number, message)
    return value


ORDER_PARAMETERS: Final = frozenset(
    (
        "symbol",
        "side",
        "type",
        "timeInForce",
        "quantity",
        "quoteOrderQty",
        "price",
        "newClientOrderId",
        "newOrderRespType",
        "selfTradePreventionMode",
    )
)


def new_order(parameters: Parameters) -> tuple[NewOrder, str]:
    """An order and the response type it asks for.  Raises `Refused`."""
    mode = parameters.get("selfTradePreventionMode", _SELF_TRADE)
    if mode != _SELF_TRADE:
        raise Refused(-1013, "This symbol does not allow the specified self-trade prevention mode.")
    kind = _choice(_TYPES, _mandatory(parameters, "type"), -1116, "Invalid orderType.")
    tif = parameters.get("timeInForce")
    order = NewOrder(
        symbol=symbol(parameters),
        side=_choice(_SIDES, _mandatory(parameters, "side"), -1117, "Invalid side."),
        type=kind,
        tif=None if tif is None else _choice(_TIFS, tif, -1115, "Invalid timeInForce."),
        qty=_decimal(parameters, "quantity"),
        quote_qty=_decimal(parameters, "quoteOrderQty"),
        price=_decimal(parameters, "price"),
        client_id=client_id(parameters, "newClientOrderId"),
    )
    default = "ACK" if kind == "LIMIT_MAKER" else "FULL"
    answer = parameters.get("newOrderRespType", default)
    return order, _choice(_RESPONSES, answer, -1130, "Data sent for parameter 'newOrderRespType' is not valid.")


def withdrawal(parameters: Parameters) -> tuple[str, Decimal]:
    """`(coin, amount)`.  Raises `Refused`."""
    coin = _mandatory(parameters, "coin")
    _mandatory(parameters, "address")
    amount = _decimal(parameters, "amount")
    if amount is None:
        raise Refused(-1102, "Mandatory parameter 'amount' was not sent, was empty/null, or malformed.")
    return coin, amount


def number(value: Decimal) -> str:
    """A price, quantity or amount as Binance writes it."""
    return f"{value:.{PLACES}f}"


def exchange_info(instruments: list[Instrument], limits: Limits, now_ms: int) -> Json:
    """`GET /api/v3/exchangeInfo`."""
    return {
        "timezone": "UTC",
        "serverTime": now_ms,
        "rateLimits": [
            {
                "rateLimitType": "REQUEST_WEIGHT",
                "interval": "MINUTE",
                "intervalNum": 1,
                "limit": limits.weight_minute,
            },
            {"rateLimitType": "ORDERS", "interval": "SECOND", "intervalNum": 10, "limit": limits.orders_10s},
            {"rateLimitType": "ORDERS", "interval": "DAY", "intervalNum": 1, "limit": limits.orders_day},
        ],
        "exchangeFilters": [],
        "symbols": [_symbol_info(i) for i in instruments],
    }


def _symbol_info(i: Instrument) -> Json:
    step = number(i.step)
    return {
        "symbol": i.symbol,
        "status": "TRADING",
        "baseAsset": i.base,
        "baseAssetPrecision": PLACES,
        "quoteAsset": i.quote,
        "quotePrecision": PLACES,
        "quoteAssetPrecision": PLACES,
        "baseCommissionPrecision": PLACES,
        "quoteCommissionPrecision": PLACES,
        "orderTypes": list(_TYPES),
        "icebergAllowed": False,
        "ocoAllowed": False,
        "quoteOrderQtyMarketAllowed": True,
        "allowTrailingStop": False,
        "cancelReplaceAllowed": False,
        "isSpotTradingAllowed": True,
        "isMarginTradingAllowed": False,
        "filters": [
            {
                "filterType": "PRICE_FILTER",
                "minPrice": number(i.tick),
                "maxPrice": number(i.max_price),
                "tickSize": number(i.tick),
            },
            {"filterType": "LOT_SIZE", "minQty": step, "maxQty": number(i.max_qty), "stepSize": step},
            {"filterType": "MARKET_LOT_SIZE", "minQty": step, "maxQty": number(i.max_market_qty), "stepSize": step},
            {
                "filterType": "NOTIONAL",
                "minNotional": number(i.min_notional),
                "applyMinToMarket": True,
                "maxNotional": number(i.max_notional),
                "applyMaxToMarket": True,
                "avgPriceMins": 0,
            },
            {"filterType": "MAX_NUM_ORDERS", "maxNumOrders": i.max_orders},
        ],
        "permissions": ["SPOT"],
        "permissionSets": [["SPOT"]],
        "defaultSelfTradePreventionMode": _SELF_TRADE,
        "allowedSelfTradePreventionModes": [_SELF_TRADE],
    }


def placed(order: Order, answer: str) -> Json:
    """The answer to a new order, of type ACK, RESULT or FULL."""
    ack: Json = {
        "symbol": order.symbol,
        "orderId": order.id,
        "orderListId": -1,
        "clientOrderId": order.client_id,
        "transactTime": order.update_ms,
    }
    if answer == "ACK":
        return ack
    result = ack | _state(order) | {"workingTime": order.time_ms}
    if answer == "FULL":
        result["fills"] = [
            {
                "price": number(t.price),
                "qty": number(t.qty),
                "commission": number(t.commission),
                "commissionAsset": t.commission_asset,
                "tradeId": t.id,
            }
            for t in order.trades
        ]
    return result


def _state(order: Order) -> Json:
    return {
        "price": number(order.price),
        "origQty": number(order.qty),
        "executedQty": number(order.executed),
        "origQuoteOrderQty": number(order.quote_qty),
        "cummulativeQuoteQty": number(order.value),
        "status": order.status,
        "timeInForce": order.tif,
        "type": order.type,
        "side": order.side,
        "selfTradePreventionMode": _SELF_TRADE,
    }


def queried(order: Order) -> Json:
    """An order as queries show it."""
    return {
        "symbol": order.symbol,
        "orderId": order.id,
        "orderListId": -1,
        "clientOrderId": order.client_id,
        **_state(order),
        "stopPrice": number(Decimal(0)),
        "icebergQty": number(Decimal(0)),
        "time": order.time_ms,
        "updateTime": order.update_ms,
        "isWorking": True,
        "workingTime": order.time_ms,
    }


def cancelled(order: Order, cancel_id: str) -> Json:
    """The answer to a cancel; `clientOrderId` is the cancel's own."""
    return {
        "symbol": order.symbol,
        "origClientOrderId": order.client_id,
        "orderId": order.id,
        "orderListId": -1,
        "clientOrderId": cancel_id,
        "transactTime": order.update_ms,
        **_state(order),
    }


def trade(t: Trade) -> Json:
    """One row of `myTrades`."""
    return {
        "symbol": t.symbol,
        "id": t.id,
        "orderId": t.order_id,
        "orderListId": -1,
        "price": number(t.price),
        "qty": number(t.qty),
        "quoteQty": number(t.value),
        "commission": number(t.commission),
        "commissionAsset": t.commission_asset,
        "time": t.time_ms,
        "isBuyer": t.is_buyer,
        "isMaker": t.is_maker,
        "isBestMatch": True,
    }


def account(key: Key, held: Mapping[str, Balance], commission: Decimal, now_ms: int, omit_zero: bool) -> Json:
    """`GET /api/v3/account`."""
    rate = number(commission)
    return {
        "makerCommission": int(commission * 10_000),
        "takerCommission": int(commission * 10_000),
        "buyerCommission": 0,
        "sellerCommission": 0,
        "commissionRates": {"maker": rate, "taker": rate, "buyer": number(Decimal(0)), "seller": number(Decimal(0))},
        "canTrade": "trade" in key.permissions,
        "canWithdraw": "withdraw" in key.permissions,
        "canDeposit": False,
        "brokered": False,
        "requireSelfTradePrevention": False,
        "preventSor": True,
        "updateTime": now_ms,
        "accountType": "SPOT",
        "balances": [
            {"asset": asset, "free": number(b.free), "locked": number(b.locked)}
            for asset, b in held.items()
            if not omit_zero or b.free or b.locked
        ],
        "permissions": ["SPOT"],
    }


def restrictions(key: Key) -> Json:
    """`GET /sapi/v1/account/apiRestrictions`."""
    return {
        "ipRestrict": bool(key.ips),
        "createTime": 0,
        "enableReading": "read" in key.permissions,
        "enableWithdrawals": "withdraw" in key.permissions,
        "enableInternalTransfer": False,
        "enableMargin": False,
        "enableFutures": False,
        "permitsUniversalTransfer": False,
        "enableVanillaOptions": False,
        "enableFixApiTrade": False,
        "enableFixReadOnly": False,
        "enablePortfolioMarginTrading": False,
        "enableSpotAndMarginTrading": "trade" in key.permissions,
    }


def coins(held: Mapping[str, Balance]) -> list[Json]:
    """`GET /sapi/v1/capital/config/getall`: no coin has a network, nothing can be deposited."""
    return [
        {
            "coin": asset,
            "name": asset,
            "trading": True,
            "isLegalMoney": False,
            "depositAllEnable": False,
            "withdrawAllEnable": False,
            "free": number(b.free),
            "locked": number(b.locked),
            "networkList": [],
        }
        for asset, b in held.items()
    ]


def execution_report(report: Report, now_ms: int) -> Json:
    """`executionReport` of the user data stream."""
    o, t = report.order, report.trade
    closing = report.execution == "CANCELED"
    return {
        "e": "executionReport",
        "E": now_ms,
        "s": o.symbol,
        "c": report.cancel_id if closing else o.client_id,
        "S": o.side,
        "o": o.type,
        "f": o.tif,
        "q": number(report.qty),
        "p": number(o.price),
        "P": number(Decimal(0)),
        "F": number(Decimal(0)),
        "g": -1,
        "C": o.client_id if closing else "",
        "x": report.execution,
        "X": report.status,
        "r": "NONE",
        "i": o.id,
        "l": number(t.qty if t else Decimal(0)),
        "z": number(report.executed),
        "L": number(t.price if t else Decimal(0)),
        "n": number(t.commission) if t else "0",
        "N": t.commission_asset if t else None,
        "T": report.time_ms,
        "t": t.id if t else -1,
        "w": report.status in ("NEW", "PARTIALLY_FILLED") and o.type != "MARKET",
        "m": t.is_maker if t else False,
        "O": o.time_ms,
        "Z": number(report.value),
        "Y": number(t.value if t else Decimal(0)),
        "Q": number(o.quote_qty),
        "W": o.time_ms,
        "V": _SELF_TRADE,
    }


def account_position(held: Mapping[str, Balance], assets: list[str], now_ms: int) -> Json:
    """`outboundAccountPosition` of the user data stream."""
    return {
        "e": "outboundAccountPosition",
        "E": now_ms,
        "u": now_ms,
        "B": [{"a": a, "f": number(held[a].free), "l": number(held[a].locked)} for a in assets],
    }
