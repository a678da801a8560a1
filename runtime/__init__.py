"""What every process is made of, in three houses: `keys`, `bus` and `deployment`; each imports only those before it."""
