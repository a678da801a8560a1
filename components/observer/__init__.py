"""Hosts a user's component that watches: it reads, and publishes nothing but its notices."""
