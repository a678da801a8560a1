"""Binance's answers and events: orders, trades and balances into JSON; numbers leave with 8 places.  Pure."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from tallystick.components.paper_exchange.access import Key, Limits
from tallystick.components.paper_exchange.orders import (
    PLACES,
    Balance,
    Instrument,
    ListReport,
    Order,
    OrderList,
    Report,
    Trade,
)
from tallystick.components.paper_exchange.parameters import SELF_TRADE, TYPES

Json = dict[str, Any]
_ZERO: Final = "0.00000000"


def number(value: Decimal) -> str:
    """A price, quantity or amount as Binance writes it."""
    return f"{value:.{PLACES}f}"


def rate_limits(limits: Limits) -> list[Json]:
    """What may be asked, and ordered, in which time."""
    kinds = (
        ("REQUEST_WEIGHT", "MINUTE", 1, limits.weight_minute),
        ("ORDERS", "SECOND", 10, limits.orders_10s),
        ("ORDERS", "DAY", 1, limits.orders_day),
    )
    return [
        {"rateLimitType": kind, "interval": interval, "intervalNum": number, "limit": most}
        for kind, interval, number, most in kinds
    ]


def exchange_info(instruments: list[Instrument], limits: Limits, now_ms: int) -> Json:
    """`GET /api/v3/exchangeInfo`."""
    return {
        "timezone": "UTC",
        "serverTime": now_ms,
        "rateLimits": rate_limits(limits),
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
        "orderTypes": list(TYPES),
        "icebergAllowed": False,
        "ocoAllowed": True,
        "quoteOrderQtyMarketAllowed": True,
        "allowTrailingStop": False,
        "cancelReplaceAllowed": True,
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
        "defaultSelfTradePreventionMode": SELF_TRADE,
        "allowedSelfTradePreventionModes": [SELF_TRADE],
    }


def placed(order: Order, answer: str) -> Json:
    """The answer to a new order, of type ACK, RESULT or FULL."""
    ack: Json = {
        "symbol": order.symbol,
        "orderId": order.id,
        "orderListId": order.list_id,
        "clientOrderId": order.client_id,
        "transactTime": order.update_ms,
    }
    if answer == "ACK":
        return ack
    result = ack | _state(order) | {"workingTime": order.working_ms}
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
        **({"stopPrice": number(order.stop)} if order.stop else {}),
        **({} if order.strategy_id is None else {"strategyId": order.strategy_id}),
        **({} if order.strategy_type is None else {"strategyType": order.strategy_type}),
        "selfTradePreventionMode": SELF_TRADE,
    }


def queried(order: Order) -> Json:
    """An order as queries show it."""
    return {
        "symbol": order.symbol,
        "orderId": order.id,
        "orderListId": order.list_id,
        "clientOrderId": order.client_id,
        "stopPrice": _ZERO,
        **_state(order),
        "icebergQty": _ZERO,
        "time": order.time_ms,
        "updateTime": order.update_ms,
        "isWorking": not order.waits,
        "workingTime": order.working_ms,
    }


def cancelled(order: Order, cancel_id: str) -> Json:
    """The answer to a cancel; `clientOrderId` is the cancel's own."""
    return {
        "symbol": order.symbol,
        "origClientOrderId": order.client_id,
        "orderId": order.id,
        "orderListId": order.list_id,
        "clientOrderId": cancel_id,
        "transactTime": order.update_ms,
        **_state(order),
    }


def order_list(of: OrderList) -> Json:
    """A list as queries show it."""
    return {
        "orderListId": of.id,
        "contingencyType": "OCO",
        "listStatusType": "ALL_DONE" if of.done else "EXEC_STARTED",
        "listOrderStatus": "ALL_DONE" if of.done else "EXECUTING",
        "listClientOrderId": of.client_id,
        "transactionTime": of.time_ms,
        "symbol": of.symbol,
        "orders": [{"symbol": o.symbol, "orderId": o.id, "clientOrderId": o.client_id} for o in of.orders],
    }


def placed_list(of: OrderList, answer: str) -> Json:
    """The answer to a new list."""
    return order_list(of) | {"orderReports": [placed(order, answer) for order in of.orders]}


def cancelled_list(of: OrderList, cancel_id: str) -> Json:
    """The answer to the cancel of a list, or of one of its orders."""
    return order_list(of) | {"orderReports": [cancelled(order, cancel_id) for order in of.orders]}


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


def commission(symbol: str, rate: Decimal) -> Json:
    """`GET /api/v3/account/commission`."""
    none = {"maker": _ZERO, "taker": _ZERO, "buyer": _ZERO, "seller": _ZERO}
    return {
        "symbol": symbol,
        "standardCommission": none | {"maker": number(rate), "taker": number(rate)},
        "specialCommission": none,
        "taxCommission": none,
        "discount": {
            "enabledForAccount": False,
            "enabledForSymbol": False,
            "discountAsset": "BNB",
            "discount": _ZERO,
        },
    }


def account(key: Key, held: Mapping[str, Balance], commission: Decimal, now_ms: int, omit_zero: bool) -> Json:
    """`GET /api/v3/account`."""
    rate = number(commission)
    return {
        "makerCommission": int(commission * 10_000),
        "takerCommission": int(commission * 10_000),
        "buyerCommission": 0,
        "sellerCommission": 0,
        "commissionRates": {"maker": rate, "taker": rate, "buyer": _ZERO, "seller": _ZERO},
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
    """`GET /sapi/v1/account/apiRestrictions`; a key that is bound to addresses has no `tradingAuthorityExpirationTime`."""
    expires = {} if key.trades_until is None else {"tradingAuthorityExpirationTime": key.trades_until}
    return {
        "ipRestrict": bool(key.ips),
        "createTime": key.created_ms,
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
        **expires,
    }


def sub_key(email: str, key: Key) -> Json:
    """One key in the list of a sub-account's keys; it is spelt `apikey` there."""
    return {
        "email": email,
        "apiName": key.label,
        "apikey": key.api_key,
        **_sub_rights(key),
        "timestamp": key.created_ms,
    }


def new_sub_key(key: Key) -> Json:
    """A sub-account's key as it was made; `secretKey` stands here once and never again."""
    status = 2 if key.ips else 1
    named = {"apiName": key.label, "apiKey": key.api_key, "secretKey": key.secret}
    return {**named, **_sub_rights(key), "status": status, "ipList": list(key.ips)}


def _sub_rights(key: Key) -> Json:
    return {
        "canTrade": "trade" in key.permissions,
        "canMarginLoanRepay": False,
        "canFuturesTrade": False,
        "canUniversalTransfer": False,
        "canVanillaOptions": False,
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
        "P": number(o.stop),
        "F": _ZERO,
        "g": o.list_id,
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
        "w": report.status in ("NEW", "PARTIALLY_FILLED") and not o.at_market and not o.waits,
        "m": t.is_maker if t else False,
        "O": o.time_ms,
        "Z": number(report.value),
        "Y": number(t.value if t else Decimal(0)),
        "Q": number(o.quote_qty),
        **({} if o.waits else {"W": o.working_ms}),
        **({} if o.strategy_id is None else {"j": o.strategy_id}),
        **({} if o.strategy_type is None else {"J": o.strategy_type}),
        "V": SELF_TRADE,
    }


def list_status(report: ListReport, now_ms: int) -> Json:
    """`listStatus` of the user data stream."""
    of = report.order_list
    return {
        "e": "listStatus",
        "E": now_ms,
        "s": of.symbol,
        "g": of.id,
        "c": "OCO",
        "l": "ALL_DONE" if of.done else "EXEC_STARTED",
        "L": "ALL_DONE" if of.done else "EXECUTING",
        "r": "NONE",
        "C": of.client_id,
        "T": report.time_ms,
        "O": [{"s": o.symbol, "i": o.id, "c": o.client_id} for o in of.orders],
    }


def account_position(held: Mapping[str, Balance], assets: list[str], now_ms: int) -> Json:
    """`outboundAccountPosition` of the user data stream."""
    return {
        "e": "outboundAccountPosition",
        "E": now_ms,
        "u": now_ms,
        "B": [{"a": a, "f": number(held[a].free), "l": number(held[a].locked)} for a in assets],
    }
