"""The parts of documents that are made from code, between two marks."""

from __future__ import annotations

from pathlib import Path

from tallystick.schemas.errors import ConfigError


def with_part(document: Path, begin: str, end: str, part: str) -> str:
    """The document with `part` between its marks.  Raises `ConfigError` where there is no place for it."""
    try:
        text = document.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError("DOCS", f"{document} cannot be read: {exc}") from exc
    before, found, rest = text.partition(begin)
    _, ended, after = rest.partition(end)
    if not found or not ended:
        raise ConfigError("DOCS", f"{document} has no generated part, between {begin!r} and {end!r}")
    return f"{before}{begin}\n\n{part}\n\n{end}{after}"
