"""Binance spot, as `tallystick.venues.Adapter` describes a venue."""

from tallystick.venues.binance.answers import busy_until, order_answer, orders_answer
from tallystick.venues.binance.codes import FEED, PING, USED_WEIGHT, WEIGHT_MINUTE, feed_urls, weight
from tallystick.venues.binance.follow import UserStream
from tallystick.venues.binance.keys import KEYS, BinanceKeys, rights_answer, rights_probe, rights_request
from tallystick.venues.binance.order import amounts, require_own, venue_order
from tallystick.venues.binance.request import RequestBuilder

request_builder = RequestBuilder
user_stream = UserStream
key_admin = BinanceKeys

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
