"""The vault: what it lets whom do, and the embedded OpenBao server."""
