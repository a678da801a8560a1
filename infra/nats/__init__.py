"""The broker: its topology, its accounts and the embedded server."""
