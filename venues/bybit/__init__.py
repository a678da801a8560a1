"""Bybit spot (API v5): parse-back of requests, as `tallystick.venues.ParseBack` describes it; API keys of sub-accounts (`keys`)."""

from tallystick.venues.bybit.request import RequestBuilder

WORDS = RequestBuilder.WORDS
venue_order = WORDS.venue_order
amounts = WORDS.amounts
require_own = WORDS.require_own
request_builder = RequestBuilder

__all__ = ["amounts", "request_builder", "require_own", "venue_order"]
