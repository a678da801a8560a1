"""Binance spot, as `tallystick.venues.Adapter` describes a venue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tallystick.venues.binance.answers import busy_until, order_answer, orders_answer
from tallystick.venues.binance.codes import FEED, PING, USED_WEIGHT, WEIGHT_MINUTE, feed_urls, weight
from tallystick.venues.binance.keys import KEYS, BinanceKeys, rights_answer, rights_probe, rights_request
from tallystick.venues.binance.order import amounts, require_own, venue_order
from tallystick.venues.binance.request import RequestBuilder

request_builder = RequestBuilder
key_admin = BinanceKeys

if TYPE_CHECKING:
    from tallystick.venues.binance.follow import UserStream

    user_stream = UserStream
else:

    def user_stream(**account: Any) -> UserStream:
        """See `Adapter.user_stream`.  Whoever signs, or knows orders, needs no client for the stream."""
        from tallystick.venues.binance.follow import UserStream

        return UserStream(**account)


__all__ = [
    "FEED",
    "KEYS",
    "PING",
    "USED_WEIGHT",
    "WEIGHT_MINUTE",
    "amounts",
    "busy_until",
    "feed_urls",
    "key_admin",
    "order_answer",
    "orders_answer",
    "request_builder",
    "require_own",
    "rights_answer",
    "rights_probe",
    "rights_request",
    "user_stream",
    "venue_order",
    "weight",
]
