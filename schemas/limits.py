"""The limits of each strategy, as the operator signs them: for every strategy and quote asset one row, in full.  Pure.

`[limits]` of `deployment.toml` is what the rows are made from; each table overrides the ones before it key by key:

    [limits]                              for all
    [limits.quote.ASSET]                  for what is quoted in ASSET
    [limits.strategy.NAME]                for one strategy
    [limits.strategy.NAME.quote.ASSET]    for one strategy in ASSET

- Money limits have no default: what an operator did not think about stops `init` and `admit`.
- Money is text or integer, never a float; numbers that two processes share have their default in `schemas.bounds`.
- Rates are a strategy's, whatever it is quoted in: they stand in no `quote` table.
- What counts is the signed rows in the trust root.  Who reads them inherits nothing: no row, no order.

To add a limit, add a field here and a control (`components/gateway/risk/controls.py` says how).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, Final

import msgspec

from tallystick.schemas.bounds import MAX_MESSAGES, MESSAGE_BURST, MESSAGES_PER_SECOND
from tallystick.schemas.errors import Malformed, Unverified
from tallystick.schemas.event import check_positive

DAY_MS: Final = 86_400_000
BPS: Final = 10_000
_MONEY: Final = ("max_notional", "max_qty", "max_open_notional", "max_position_notional", "max_gross_notional")
_RATES: Final = ("messages_per_second", "burst")


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The limits of one strategy; money in quote units, `max_qty` in base units, each per order or per asset."""

    max_notional: Decimal
    max_qty: Decimal
    max_open_notional: Decimal
    max_position_notional: Decimal
    max_gross_notional: Decimal
    collar_bps: int = 200
    messages_per_second: int = MESSAGES_PER_SECOND
    burst: int = MESSAGE_BURST
    stale_ms: int = 5_000

    def __post_init__(self) -> None:
        for name in _MONEY:
            check_positive(getattr(self, name), name)
        for name, most in (
            ("collar_bps", BPS),
            ("messages_per_second", MAX_MESSAGES),
            ("burst", MAX_MESSAGES),
            ("stale_ms", DAY_MS),
        ):
            number: int = getattr(self, name)
            if not 1 <= number <= most:
                raise Malformed("LIMITS", f"{name} must be 1 to {most}, got {number}")


class LimitRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `strategy` may do in instruments quoted in `quote`."""

    strategy: str
    quote: str
    limits: Limits


class LimitBook:
    """The signed rows, by strategy and quote.  Raises `Malformed` for two rows of one place and for two rates."""

    __slots__ = ("_rates", "_rows")

    def __init__(self, rows: Iterable[LimitRow]) -> None:
        self._rows: dict[tuple[str, str], Limits] = {}
        self._rates: dict[str, tuple[int, int]] = {}
        for row in rows:
            rate = (row.limits.messages_per_second, row.limits.burst)
            if (row.strategy, row.quote) in self._rows or self._rates.setdefault(row.strategy, rate) != rate:
                raise Malformed("LIMITS", f"two rows for {row.strategy} in {row.quote}, or two rates of {row.strategy}")
            self._rows[row.strategy, row.quote] = row.limits

    def of(self, strategy: str, quote: str) -> Limits:
        """The limits of `strategy` in `quote`.  Raises `Unverified` where the operator signed none."""
        found = self._rows.get((strategy, quote))
        if found is None:
            raise Unverified("LIMITS_MISSING", f"the operator signed no limits for {strategy[:64]} in {quote[:32]}")
        return found

    def rate(self, strategy: str) -> tuple[int, int]:
        """Messages a second and burst of `strategy`.  Raises `Unverified` where the operator signed none."""
        found = self._rates.get(strategy)
        if found is None:
            raise Unverified("LIMITS_MISSING", f"the operator signed no limits for {strategy[:64]}")
        return found


def limit_rows(table: Mapping[str, Any], strategies: Iterable[str], quotes: Iterable[str]) -> tuple[LimitRow, ...]:
    """The rows that `[limits]` (`table`) says, in order of strategy and quote.  Raises `Malformed`, which names the place."""
    strategies, quotes = sorted(strategies), sorted(set(quotes))
    common = {k: v for k, v in table.items() if k not in {"quote", "strategy"}}
    by_quote = _tables("limits.quote", table.get("quote", {}), quotes)
    own = _tables("limits.strategy", table.get("strategy", {}), strategies)
    _refuse_rates("limits.quote", by_quote)
    rows = []
    for name in strategies:
        mine = {k: v for k, v in own.get(name, {}).items() if k != "quote"}
        where = f"limits.strategy.{name}"
        mine_by_quote = _tables(f"{where}.quote", own.get(name, {}).get("quote", {}), quotes)
        _refuse_rates(f"{where}.quote", mine_by_quote)
        for quote in quotes:
            keys = {**common, **by_quote.get(quote, {}), **mine, **mine_by_quote.get(quote, {})}
            place = f"{where}.quote.{quote}" if quote in mine_by_quote else where if name in own else "limits"
            rows.append(LimitRow(strategy=name, quote=quote, limits=_limits(place, keys)))
    return tuple(rows)


def _tables(where: str, given: object, known: Iterable[str]) -> dict[str, Mapping[str, Any]]:
    if not isinstance(given, Mapping):
        raise Malformed("LIMITS", f"{where} must be a table of tables")
    for name, keys in given.items():
        if name not in known:
            raise Malformed(
                "LIMITS",
                f"{where}.{name}: there is no such {where.rpartition('.')[2]}; known: {', '.join(known) or 'none'}",
            )
        if not isinstance(keys, Mapping):
            raise Malformed("LIMITS", f"{where}.{name} must be a table")
    return dict(given)


def _refuse_rates(where: str, tables: Mapping[str, Mapping[str, Any]]) -> None:
    for name, keys in tables.items():
        if found := [key for key in keys if key in _RATES]:
            raise Malformed("LIMITS", f"{where}.{name}.{found[0]}: a rate is the strategy's, whatever the quote")


def _limits(where: str, keys: Mapping[str, Any]) -> Limits:
    wrong = [k for k, v in keys.items() if isinstance(v, float | bool)]
    if wrong:
        raise Malformed("LIMITS", f'{where}.{wrong[0]}: write amounts as text, such as "0.5"')
    texts = {k: str(v) if isinstance(v, int) and k in _MONEY else v for k, v in keys.items()}
    try:
        return msgspec.convert(texts, Limits)
    except (msgspec.ValidationError, Malformed) as exc:
        raise Malformed("LIMITS", f"{where}: {exc}") from exc
