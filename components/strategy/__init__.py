"""The strategy host: user code in a process and account of its own."""
