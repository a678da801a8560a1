"""Custody: builds and signs exchange requests, only what a permit allows."""
