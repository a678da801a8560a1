"""Faust without Kafka: channel, agent and windowed tables as services of this process's own event loop.

- The app is started and stopped like any other service: no Faust worker, so no signal handlers, no web server and
  no redirected `print`.
- Nothing of Faust's configuration comes from the environment, nothing is written to disk.
- An exception in an agent goes to `on_failure` before Faust acknowledges the event and goes on.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterable, Callable
from typing import Any, Final

import faust
from faust.app.base import BootStrategy
from faust.events import Event
from faust.types import TP
from faust.types.tuples import Message
from mode.supervisors import CrashingSupervisor

from tallystick.runtime.bus.log import Log

TOPIC: Final = "orders"
_TP: Final = TP(TOPIC, 0)


class _NoKafka(BootStrategy):  # type: ignore[misc, unused-ignore]
    enable_kafka = False
    enable_web = False
    enable_sensors = False


class StreamsApp(faust.App):  # type: ignore[misc, unused-ignore]
    """The app; `on_failure` is called with what an agent or its stream raised."""

    BootStrategy = _NoKafka

    def __init__(self, name: str, on_failure: Callable[[BaseException], None]) -> None:
        # The broker is never connected to: a port that nobody serves, should that ever change.
        super().__init__(
            name,
            broker="kafka://127.0.0.1:1",
            store="memory://",
            web_enabled=False,
            topic_allow_declare=False,
            autodiscover=False,
            cython_optimizations=False,
            debug=False,
            env={},
        )
        self._on_failure = on_failure

    def on_init_dependencies(self) -> Any:
        """Without Faust's monitor, which measures each event: the component has metrics of its own."""
        services = super().on_init_dependencies()
        self.sensors.remove(self.monitor)
        return services

    async def _on_agent_error(self, agent: Any, exc: BaseException) -> None:
        self._on_failure(exc)

    def _create_directories(self) -> None:
        """This app keeps no files."""

    def serve(self, channel: Any, apply: Callable[[Any], Any]) -> None:
        """One agent: `await apply(event)` for each event of `channel`, in order."""

        async def orders(stream: Any) -> None:
            events: AsyncIterable[Any] = stream.events()
            async for event in events:
                await apply(event)

        self.agent(channel, name=TOPIC, supervisor_strategy=CrashingSupervisor)(orders)

    def event(self, value: Any, offset: int, seconds: int) -> Any:
        """An event at stream time `seconds`; `generation_id` is that of an app that never rebalances."""
        message = Message(TOPIC, 0, offset, float(seconds), 1, None, None, None, None, tp=_TP, generation_id=0)
        return Event(self, None, value, None, message)


class LogBridge(logging.Handler):
    """Passes what Faust and mode log at warning and above to the component's log."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """One record as one structured line."""
        self._log.warning("faust", logger=record.name, level=record.levelname, text=record.getMessage()[:2000])

    def attach(self) -> None:
        """Begin; Faust's own levels and handlers stay as they are."""
        for name in ("faust", "mode"):
            logging.getLogger(name).addHandler(self)

    def detach(self) -> None:
        """End."""
        for name in ("faust", "mode"):
            logging.getLogger(name).removeHandler(self)
