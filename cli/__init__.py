"""The command line: every way that people start, ask and stop the system."""
