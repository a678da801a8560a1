"""Secrets from a vault: its client, the lease under which a component holds them, and its set-up."""
