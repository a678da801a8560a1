"""What a component may ask of its logger: structured lines, one JSON object each."""

from __future__ import annotations

from typing import Protocol


class Log(Protocol):
    """A structured logger: `log.info("crossed", symbol=symbol)`.  structlog's loggers are such."""

    def debug(self, event: str, **values: object) -> object:
        """For whoever looks closely."""

    def info(self, event: str, **values: object) -> object:
        """The ordinary course."""

    def warning(self, event: str, **values: object) -> object:
        """Something that people should know."""

    def error(self, event: str, **values: object) -> object:
        """Something that failed."""

    def exception(self, event: str, **values: object) -> object:
        """As `error`, with the traceback of the exception that is being handled."""
