"""The limits of each strategy, from the deployment's `[limits]` table.

- Money limits have no default: what an operator did not think about stops the start.
- A strategy's own table overrides the common one key by key.
- Money is text or integer, never a float; numbers that two processes share have their default in `schemas.bounds`.

To change a limit, change `deployment.toml`; to add one, add a field here and a control (`controls` says how).
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

import msgspec

from tallystick.components.gateway.risk.amounts import BPS
from tallystick.schemas.bounds import MAX_MESSAGES, MESSAGE_BURST, MESSAGES_PER_SECOND
from tallystick.schemas.errors import ConfigError, Malformed
from tallystick.schemas.event import check_positive
from tallystick.schemas.subjects import check_name

DAY_MS: Final = 86_400_000


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
        for name in ("max_notional", "max_qty", "max_open_notional", "max_position_notional", "max_gross_notional"):
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


class LimitBook:
    """The limits of every strategy, from the deployment's `[limits]` table."""

    __slots__ = ("_default", "_own")

    def __init__(self, default: Limits, own: Mapping[str, Limits] | None = None) -> None:
        self._default = default
        self._own = dict(own or {})

    @classmethod
    def parse(cls, table: Mapping[str, Any]) -> LimitBook:
        """From `{key: value, …, "strategy": {name: {key: value}}}`; a strategy's keys override the others.

        Money is text or integer, never a float.  Raises `ConfigError`.
        """
        default = {k: v for k, v in table.items() if k != "strategy"}
        own = table.get("strategy", {})
        if not isinstance(own, Mapping):
            raise ConfigError("LIMITS", "limits.strategy must be a table of tables")
        return cls(
            _limits("limits", default),
            {name: _limits(f"limits.strategy.{name}", _merge(name, default, keys)) for name, keys in own.items()},
        )

    def of(self, strategy: str) -> Limits:
        """The limits of `strategy`."""
        return self._own.get(strategy, self._default)


def _merge(name: str, default: Mapping[str, Any], keys: object) -> dict[str, Any]:
    if not isinstance(keys, Mapping):
        raise ConfigError("LIMITS", f"limits.strategy.{name} must be a table")
    try:
        check_name(name, "strategy")
    except Malformed as exc:
        raise ConfigError("LIMITS", f"limits.strategy: {exc.text}") from exc
    return {**default, **keys}


def _limits(where: str, keys: Mapping[str, Any]) -> Limits:
    wrong = [k for k, v in keys.items() if isinstance(v, float | bool)]
    if wrong:
        raise ConfigError("LIMITS", f'{where}.{wrong[0]}: write amounts as text, such as "0.5"')
    texts = {k: str(v) if isinstance(v, int) and k.startswith("max_") else v for k, v in keys.items()}
    try:
        return msgspec.convert(texts, Limits)
    except (msgspec.ValidationError, Malformed) as exc:
        raise ConfigError("LIMITS", f"{where}: {exc}") from exc
