"""Replay: recorded events read back, verified, and played where nothing live accepts them."""
