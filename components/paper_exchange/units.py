"""Times in answers and events, in milliseconds unless a client asks for microseconds (`timeUnit`).  Pure.

Source: Binance Spot API documentation, "General API Information" (`X-MBX-TIME-UNIT`), "WebSocket Streams".
"""

from __future__ import annotations

from typing import Any, Final

from tallystick.components.paper_exchange.orders import Refused

_UNITS: Final = {"MILLISECOND": False, "millisecond": False, "MICROSECOND": True, "microsecond": True}
_TIMES: Final = frozenset(
    (
        "closeTime",
        "openTime",
        "serverTime",
        "time",
        "transactTime",
        "transactionTime",
        "updateTime",
        "workingTime",
        "E",
        "T",
    )
)
# What is a time in one kind of event and something else in others.
_OF_EVENT: Final[dict[str, frozenset[str]]] = {
    "executionReport": frozenset(("O", "W")),
    "outboundAccountPosition": frozenset(("u",)),
    "24hrTicker": frozenset(("O", "C")),
    "24hrMiniTicker": frozenset(("O", "C")),
}
_NONE: Final[frozenset[str]] = frozenset()
_KLINE: Final = 12


def wants_micros(unit: str | None) -> bool:
    """Whether a client asks for microseconds.  Raises `Refused` -1194 for what is no unit."""
    if unit is None:
        return False
    if unit not in _UNITS:
        raise Refused(-1194, "Invalid value for time unit; expected either MICROSECOND or MILLISECOND.")
    return _UNITS[unit]


def micros(value: Any) -> Any:
    """An answer or event with its times in microseconds."""
    if isinstance(value, list):
        if len(value) == _KLINE and isinstance(value[0], int):
            return [value[0] * 1_000, *value[1:6], value[6] * 1_000 + 999, *value[7:]]
        return [micros(each) for each in value]
    if not isinstance(value, dict):
        return value
    times = _TIMES | _OF_EVENT.get(str(value.get("e")), _NONE)
    if "i" in value and "t" in value and isinstance(value["i"], str):
        times |= {"t"}  # a candle of the stream
    return {
        name: each * 1_000 if name in times and type(each) is int and each > 0 else micros(each)
        for name, each in value.items()
    }
