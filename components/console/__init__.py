"""The console: what people look at.  It reads; it decides and publishes nothing."""
