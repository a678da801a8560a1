"""The audit: verifies every message of every stream, projects it to immutable Parquet, answers SQL and traces."""
