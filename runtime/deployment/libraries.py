"""The libraries of every process, without the optional parts that nobody here uses.

structlog reads rich for coloured tracebacks.  To be imported before anything that imports structlog.
"""

from __future__ import annotations

from tallystick.runtime import lean

with lean.without("rich", "better_exceptions", "colorama"):
    import structlog

__all__ = ("structlog",)
