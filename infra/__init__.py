"""What the system runs on: the bus, policies and machine set-up."""
