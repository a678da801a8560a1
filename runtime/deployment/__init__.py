"""A deployment: its folder and configuration, its key ceremony, and its processes from start to stop."""
