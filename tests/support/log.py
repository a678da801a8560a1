"""A logger that keeps what it is told."""

from __future__ import annotations


class Lines:
    """`lines` holds level, event and values of each line; as `runtime.bus.log.Log`."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, dict[str, object]]] = []

    def debug(self, event: str, **values: object) -> None:
        self.lines.append(("debug", event, values))

    def info(self, event: str, **values: object) -> None:
        self.lines.append(("info", event, values))

    def warning(self, event: str, **values: object) -> None:
        self.lines.append(("warning", event, values))

    def error(self, event: str, **values: object) -> None:
        self.lines.append(("error", event, values))

    def exception(self, event: str, **values: object) -> None:
        self.lines.append(("exception", event, values))

    def said(self, level: str) -> list[str]:
        """The events of a level, in order."""
        return [event for kind, event, _ in self.lines if kind == level]
