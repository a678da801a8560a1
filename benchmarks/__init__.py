"""Measurements beside their peers, in one run on one machine.  Not tests: they assert nothing about time."""
