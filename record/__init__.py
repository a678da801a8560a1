"""The record: the archive's format, its chains and verification, traces through it, and SQL over it."""
