"""Rotation by hand, where a venue has no API for it: the steps, in the venue's own words, and what is checked after each.

Who does them is the operator, on the venue's site; what proves them is the same as where it goes by itself: the new key
is accepted and fits its role, and the old one is refused as unknown.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

Check = Literal["none", "new-accepted", "old-refused"]


class GuidedStep(msgspec.Struct, frozen=True):
    """What the operator does, and what is asked of the venue before the next step."""

    text: str
    check: Check = "none"


class _Words(msgspec.Struct, frozen=True):
    """Where a venue keeps its keys, what the rights are called, and what restricts addresses."""

    page: str
    trade: str
    never: str
    addresses: str
    delete: str


# ccxt's id of an exchange -> its words.
_WORDS: Final[dict[str, _Words]] = {
    "okx": _Words("Profile → API → Create API key", "'Read' and 'Trade'", "'Withdraw'", "'IP address'", "'Delete'"),
    "kraken": _Words(
        "Settings → API → Create API key",
        "'Query Funds', 'Query open orders & trades', 'Create & modify orders' and 'Cancel & close orders'",
        "'Withdraw Funds'",
        "'IP address restriction'",
        "'Delete'",
    ),
    "coinbase": _Words("API Keys → Create API key", "'View' and 'Trade'", "'Transfer'", "'IP whitelist'", "'Delete'"),
    "bybit": _Words(
        "Account & Security → API Management → Create New Key → Self-generated API Keys",
        "'Read-Write' with 'SPOT → Trade'",
        "'Assets → Withdrawal'",
        "'Only IPs with permissions granted are allowed to access the API'",
        "'Delete'",
    ),
}
_ANY: Final = _Words(
    "the page where API keys are made", "reading and trading", "withdrawing", "the list of trusted addresses", "delete"
)


def steps(
    exchange: str, role: Literal["trade", "read"], label: str, addresses: tuple[str, ...]
) -> tuple[GuidedStep, ...]:
    """The guided rotation at `exchange` (ccxt's id) of a key for `role`, under `label`, for `addresses`."""
    words = _WORDS.get(exchange, _ANY)
    rights = words.trade if role == "trade" else f"reading alone, of {words.trade}"
    return (
        GuidedStep(f"Log in to {exchange} and open {words.page}. Name the key {label}."),
        GuidedStep(f"Allow {rights}. Leave {words.never} and everything else off."),
        GuidedStep(f"Under {words.addresses} enter {', '.join(addresses)}."),
        GuidedStep("Bring the new key with `tallystick keys import`; do not keep a copy.", "new-accepted"),
        GuidedStep(
            f"Open the same page, find the key that was used until now, and choose {words.delete}.", "old-refused"
        ),
    )
