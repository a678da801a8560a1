"""A venue for everyone without a live key: Binance's spot API over TLS 1.3 with real matching; see `docs/paper-exchange.md`."""
