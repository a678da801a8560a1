"""Keeps the API keys at a venue young: makes new ones, switches to them, and deletes the old ones."""
