"""What the system runs on: the embedded servers (bus, vault), whoever owns a folder, policies and machine set-up."""
