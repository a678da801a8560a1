"""What every process is made of, in four houses: `keys`, `bus`, `vault` and `deployment`; each imports only those before it."""
