"""What all components share: tokens, credentials, the bus, processes and logs."""
