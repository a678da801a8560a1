"""Portfolio: fills and balances from the venue's user stream, positions, reconciliation."""
