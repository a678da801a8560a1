r"""Binance's requests: parameters into what the venue is asked for.  Pure.

Numbers come as plain decimals (`^([0-9]{1,20})(\.[0-9]{1,20})?$`: no sign, exponent, NaN or blank) with at most 8
places; moments in Unix milliseconds or microseconds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Final, TypeVar

from tallystick.components.paper_exchange.access import MICROSECONDS
from tallystick.components.paper_exchange.checks import missing
from tallystick.components.paper_exchange.orders import (
    PLACES,
    SYMBOL,
    NewOrder,
    OrderType,
    Refused,
    Side,
    TimeInForce,
)

Parameters = Mapping[str, str]

_DECIMAL = re.compile(r"([0-9]{1,20})(?:\.([0-9]{1,20}))?")
_SYMBOL_RANGE: Final = r"^[\\w\\-._&&[^a-z]]{1,50}$"
_CLIENT_ID: Final = r"^[\.A-Z\:/a-z0-9_-]{1,36}$"
_SIDES: Final[dict[str, Side]] = {"BUY": "BUY", "SELL": "SELL"}
TYPES: Final[dict[str, OrderType]] = {
    "LIMIT": "LIMIT",
    "LIMIT_MAKER": "LIMIT_MAKER",
    "MARKET": "MARKET",
    "STOP_LOSS": "STOP_LOSS",
    "STOP_LOSS_LIMIT": "STOP_LOSS_LIMIT",
    "TAKE_PROFIT": "TAKE_PROFIT",
    "TAKE_PROFIT_LIMIT": "TAKE_PROFIT_LIMIT",
}
_TIFS: Final[dict[str, TimeInForce]] = {"GTC": "GTC", "IOC": "IOC", "FOK": "FOK"}
_RESPONSES: Final = {"ACK": "ACK", "RESULT": "RESULT", "FULL": "FULL"}
# Binance's only mode here, and its default.
SELF_TRADE: Final = "EXPIRE_MAKER"
# The longest answer to a query, as at Binance.
MAX_LIST: Final = 1_000
DAY_MS: Final = 86_400_000
_NOT_HERE: Final = {
    "icebergQty": "Iceberg orders are not supported for this symbol.",
    "trailingDelta": "Trailing stop orders are not supported for this symbol.",
    "pegPriceType": "Pegged orders are not supported for this symbol.",
}
_MIN_STRATEGY_TYPE: Final = 1_000_000
_T = TypeVar("_T")


def _mandatory(parameters: Parameters, name: str) -> str:
    value = parameters.get(name)
    if value is None:
        raise missing(name)
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


def limit(parameters: Parameters, default: int, most: int) -> int:
    """`limit`, at most `most`.  Raises `Refused` -1130 for none at all."""
    asked = integer(parameters, "limit")
    if asked == 0:
        raise Refused(-1130, "Data sent for parameter 'limit' is not valid.")
    return min(asked or default, most)


def moment(parameters: Parameters, name: str) -> int | None:
    """An optional moment in Unix milliseconds; microseconds are told apart by their size.  Raises `Refused` -1100."""
    value = integer(parameters, name)
    return value if value is None or value < MICROSECONDS else value // 1_000


def span(parameters: Parameters) -> tuple[int | None, int | None]:
    """`(startTime, endTime)`.  Raises `Refused` -1127 where more than a day lies between them."""
    start, end = moment(parameters, "startTime"), moment(parameters, "endTime")
    if start is not None and end is not None and end - start > DAY_MS:
        raise Refused(-1127, "More than 24 hours between startTime and endTime.")
    return start, end


def symbol(parameters: Parameters) -> str:
    """The mandatory symbol, as it is.  Raises `Refused` -1102, -1100."""
    text = _mandatory(parameters, "symbol")
    if not SYMBOL.fullmatch(text):
        raise Refused(-1100, f"Illegal characters found in parameter 'symbol'; legal range is '{_SYMBOL_RANGE}'.")
    return text


def client_id(parameters: Parameters, name: str) -> str | None:
    """An optional client order id.  Raises `Refused` -1100."""
    text = parameters.get(name)
    if text is not None and not re.fullmatch("[.A-Z:/a-z0-9_-]{1,36}", text):
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
        "stopPrice",
        "newClientOrderId",
        "strategyId",
        "strategyType",
        "newOrderRespType",
        "selfTradePreventionMode",
        *_NOT_HERE,
        "pegOffsetType",
        "pegOffsetValue",
    )
)
_LEG: Final = (
    "Type",
    "ClientOrderId",
    "Price",
    "StopPrice",
    "TimeInForce",
    "StrategyId",
    "StrategyType",
    "IcebergQty",
    "TrailingDelta",
)
_LIST: Final = frozenset(
    ("symbol", "listClientOrderId", "side", "quantity", "newOrderRespType", "selfTradePreventionMode")
)
OCO_PARAMETERS: Final = _LIST | {f"{leg}{field}" for leg in ("above", "below") for field in _LEG}
# Of the endpoint before that, which many clients still use.
OLD_OCO_PARAMETERS: Final = _LIST | {
    "limitClientOrderId",
    "price",
    "limitStrategyId",
    "limitStrategyType",
    "limitIcebergQty",
    "stopClientOrderId",
    "stopPrice",
    "stopLimitPrice",
    "stopLimitTimeInForce",
    "stopStrategyId",
    "stopStrategyType",
    "stopIcebergQty",
    "trailingDelta",
}


def _self_trade(parameters: Parameters) -> None:
    mode = parameters.get("selfTradePreventionMode", SELF_TRADE)
    if mode != SELF_TRADE:
        raise Refused(-1013, "This symbol does not allow the specified self-trade prevention mode.")


def response(parameters: Parameters, default: str) -> str:
    """The kind of answer that an order asks for.  Raises `Refused` -1130."""
    answer = parameters.get("newOrderRespType", default)
    return _choice(_RESPONSES, answer, -1130, "Data sent for parameter 'newOrderRespType' is not valid.")


def new_order(parameters: Parameters) -> tuple[NewOrder, str]:
    """An order and the response type it asks for.  Raises `Refused`."""
    _self_trade(parameters)
    kind = _choice(TYPES, _mandatory(parameters, "type"), -1116, "Invalid orderType.")
    tif = parameters.get("timeInForce")
    for name, text in _NOT_HERE.items():
        if name in parameters:
            raise Refused(-2010, text)
    strategy_type = integer(parameters, "strategyType")
    if strategy_type is not None and strategy_type < _MIN_STRATEGY_TYPE:
        raise Refused(-1134, "strategyType was less than 1000000.")
    order = NewOrder(
        symbol=symbol(parameters),
        side=_choice(_SIDES, _mandatory(parameters, "side"), -1117, "Invalid side."),
        type=kind,
        tif=None if tif is None else _choice(_TIFS, tif, -1115, "Invalid timeInForce."),
        qty=_decimal(parameters, "quantity"),
        quote_qty=_decimal(parameters, "quoteOrderQty"),
        price=_decimal(parameters, "price"),
        client_id=client_id(parameters, "newClientOrderId"),
        stop=_decimal(parameters, "stopPrice"),
        strategy_id=integer(parameters, "strategyId"),
        strategy_type=strategy_type,
    )
    return order, response(parameters, "FULL" if kind in {"MARKET", "LIMIT"} else "ACK")


def oco(parameters: Parameters) -> tuple[NewOrder, NewOrder, str | None, str]:
    """`(above, below, list's client id, response type)`.  Raises `Refused`."""
    _self_trade(parameters)
    shared = {name: parameters[name] for name in ("symbol", "side", "quantity") if name in parameters}
    legs = []
    for leg in ("above", "below"):
        _mandatory(parameters, f"{leg}Type")
        own = {
            ("newClientOrderId" if field == "ClientOrderId" else f"{field[0].lower()}{field[1:]}"): parameters[name]
            for field in _LEG
            if (name := f"{leg}{field}") in parameters
        }
        legs.append(new_order(shared | own)[0])
    return legs[0], legs[1], client_id(parameters, "listClientOrderId"), response(parameters, "RESULT")


def old_oco(parameters: Parameters) -> tuple[NewOrder, NewOrder, str | None, str]:
    """The same, of the older endpoint's parameters."""
    _mandatory(parameters, "price")
    _mandatory(parameters, "stopPrice")
    limit_leg, stop_leg = ("above", "below") if parameters.get("side") == "SELL" else ("below", "above")
    stop_type = "STOP_LOSS_LIMIT" if "stopLimitPrice" in parameters else "STOP_LOSS"
    named = {
        f"{limit_leg}Price": "price",
        f"{limit_leg}ClientOrderId": "limitClientOrderId",
        f"{limit_leg}StrategyId": "limitStrategyId",
        f"{limit_leg}StrategyType": "limitStrategyType",
        f"{limit_leg}IcebergQty": "limitIcebergQty",
        f"{stop_leg}Price": "stopLimitPrice",
        f"{stop_leg}StopPrice": "stopPrice",
        f"{stop_leg}TimeInForce": "stopLimitTimeInForce",
        f"{stop_leg}ClientOrderId": "stopClientOrderId",
        f"{stop_leg}StrategyId": "stopStrategyId",
        f"{stop_leg}StrategyType": "stopStrategyType",
        f"{stop_leg}IcebergQty": "stopIcebergQty",
        f"{stop_leg}TrailingDelta": "trailingDelta",
    }
    new = {name: parameters[old] for name, old in named.items() if old in parameters}
    kinds = {f"{limit_leg}Type": "LIMIT_MAKER", f"{stop_leg}Type": stop_type}
    return oco({name: parameters[name] for name in _LIST & parameters.keys()} | kinds | new)


def withdrawal(parameters: Parameters) -> tuple[str, Decimal]:
    """`(coin, amount)`.  Raises `Refused`."""
    coin = _mandatory(parameters, "coin")
    _mandatory(parameters, "address")
    amount = _decimal(parameters, "amount")
    if amount is None:
        raise Refused(-1102, "Mandatory parameter 'amount' was not sent, was empty/null, or malformed.")
    return coin, amount
