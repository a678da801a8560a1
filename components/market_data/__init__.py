"""Market data: recorded dumps, a synthetic market and live feeds, published as `md.*` and `ref.market`."""
