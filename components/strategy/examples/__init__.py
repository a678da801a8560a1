"""Strategies to read, copy and trade on paper with."""
