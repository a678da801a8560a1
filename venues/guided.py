"""Rotation by hand, where a venue has no API for it: what a person does on the venue's site, in the venue's words.

What proves it is the same as where it goes by itself: the new key is accepted and fits its role, and the old one is refused
as unknown.
"""

from __future__ import annotations

from typing import Final

import msgspec

from tallystick.venues.keys import Role


class _Words(msgspec.Struct, frozen=True):
    """Where a venue keeps its keys, what the rights are called, and what restricts addresses."""

    page: str
    read: str
    trade: str
    addresses: str
    delete: str


# `venues.keys.VenueName` -> its words.
_WORDS: Final[dict[str, _Words]] = {
    "binance": _Words(
        page="API Management → Create API → Self-generated",
        read="'Enable Reading'",
        trade="'Enable Reading' and 'Enable Spot & Margin Trading'",
        addresses="'Restrict access to trusted IPs only'",
        delete="'Delete'",
    )
}
_ANY: Final = _Words(
    page="the page where API keys are made",
    read="reading",
    trade="reading and trading",
    addresses="the list of trusted addresses",
    delete="delete",
)


def to_make(venue: str, role: Role, label: str, addresses: tuple[str, ...], public_key: str) -> tuple[str, ...]:
    """The steps that make a key for `role`; `addresses`: ours, where they are known; `public_key` is PEM."""
    words = _WORDS.get(venue, _ANY)
    ours = ", ".join(addresses) or "the addresses from which this machine reaches the venue"
    return (
        f"Log in to {venue} and open {words.page}. Name the key {label}, and give it this public key:\n\n{public_key}",
        f"Allow {words.trade if role == 'trade' else words.read}, and nothing else: above all no withdrawals.",
        f"Under {words.addresses} enter {ours}.",
    )


def to_delete(venue: str, api_key: str) -> str:
    """The step that deletes a key."""
    words = _WORDS.get(venue, _ANY)
    return f"On {venue}'s page of API keys, find the key whose id begins with {api_key[:8]}, and choose {words.delete}."
