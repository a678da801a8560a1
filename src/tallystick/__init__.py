"""Tallystick: a zero-trust, event-sourced trading system on NATS JetStream."""

__version__ = "0.1.0"
