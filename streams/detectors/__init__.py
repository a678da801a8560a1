"""Detectors: pure functions over the state of a window, so that a replay gives the same alerts."""
