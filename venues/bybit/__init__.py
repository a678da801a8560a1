"""Bybit: what an API key may do, and the API keys of a sub-account.  It is not traded at yet."""
