"""What `tallystick replay` does once its words are understood: source, zone, sink, counts."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Final, Literal, TextIO

from tallystick.cli import status
from tallystick.cli.stopping import INTERRUPTED, Stop, Stopped, signals, unless
from tallystick.infra.nats.topology import REPLAY, REPLAY_PREFIX
from tallystick.replay import player, show
from tallystick.replay.selection import Selection, parse_sequences, parse_time, time_text
from tallystick.replay.verify import Examined, Failure, Judge, Played, Tally
from tallystick.replay.zone import Replayer, require_zone
from tallystick.runtime.bus.metrics import Metrics
from tallystick.runtime.bus.tasks import Tasks
from tallystick.runtime.deployment import process
from tallystick.runtime.deployment.ceremony import init
from tallystick.runtime.deployment.folder import Deployment
from tallystick.runtime.deployment.supervisor import Supervisor
from tallystick.runtime.keys.keystore import Keystore, Secret, read_pin
from tallystick.schemas.errors import ConfigError, Unverified
from tallystick.schemas.seal import MAX_INT, Verifier
from tallystick.schemas.trust import public_key_bytes

PROGRESS_S: Final = 2.0
NOT_EXACT: Final = (
    "the zone's detectors count by when its own broker stores a message: played faster or slower than recorded, their "
    "alerts are others than the record's, which --subject 'alert.>' shows; --speed 1 comes close to them"
)


class Options:
    """What the command line asks for, parsed.  Raises `ConfigError`."""

    def __init__(
        self,
        *,
        subject: list[str],
        stream: list[str],
        since: str,
        until: str,
        sequences: str,
        speed: str,
        keep_going: bool,
        limit: int,
    ) -> None:
        first, last = parse_sequences(sequences) if sequences else (1, MAX_INT)
        self.selection = Selection(
            patterns=tuple(subject),
            streams=tuple(stream),
            since=parse_time(since) if since else 0,
            until=parse_time(until) if until else MAX_INT,
            first=first,
            last=last,
        )
        self.schedule = player.Schedule(player.parse_speed(speed))
        self.keep_going = keep_going
        if limit < 0:
            raise ConfigError("OPTION", f"--limit counts messages, got {limit}")
        self.limit = limit


class _Printer:
    """A sink that prints."""

    def __init__(self, form: Literal["text", "json"], out: TextIO) -> None:
        self._lines = show.json_lines if form == "json" else show.lines
        self._out = out

    async def play(self, played: Played) -> None:
        for line in self._lines(played):
            self._out.write(line + "\n")


def open_zone(directory: Path, pin_fd: int | None) -> tuple[Deployment, Keystore]:
    """The replay zone in `directory`, made if there is none.  Raises `ConfigError` for any other deployment."""
    if (directory / "deployment.toml").exists():
        zone = Deployment.load(directory)
        require_zone(zone)
        return zone, Keystore.open(zone.keystore, read_pin("Master PIN of the zone: ", pin_fd))
    pin = read_pin("New master PIN of the zone (8 characters or more): ", pin_fd)
    if pin_fd is None and read_pin("Again: ") != pin:
        raise ConfigError("PIN_INPUT", "the two PINs differ; nothing was made")
    return make_zone(directory, pin, time.time_ns, _note)


def make_zone(
    directory: Path, pin: Secret, clock: Callable[[], int], progress: Callable[[str], None] = lambda _: None
) -> tuple[Deployment, Keystore]:
    """A replay zone with keys of its own in `directory`, under a random id."""
    name = f"{REPLAY_PREFIX}{os.urandom(6).hex()}"
    zone = init(directory, name, pin, clock, strategies=(), progress=progress)
    return zone, Keystore.open(zone.keystore, pin)


def _note(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S', time.gmtime())}  {text}\n")


class Playback:
    """One run of the command."""

    def __init__(
        self,
        directory: Path,
        options: Options,
        root: Path | None,
        source_keys: Keystore | None,
        zone: tuple[Deployment, Keystore] | None,
        run: list[str],
        form: Literal["text", "json"],
        *,
        stay: bool = False,
    ) -> None:
        self._directory = directory
        self._options = options
        self._root = root
        self._source_keys = source_keys
        self._zone = zone
        self._run = run
        self._form: Literal["text", "json"] = form
        self._stay = stay
        self._stop: Stop
        self._read = 0
        self._held = ""
        self._tally = Tally()

    async def replay(self) -> int:
        """Play; the exit code."""
        with signals() as self._stop:
            try:
                return await self._replay()
            except Stopped:
                return INTERRUPTED

    async def _replay(self) -> int:
        stop, tasks = self._stop, Tasks()
        async with contextlib.AsyncExitStack() as stack:
            # Last of all: the zone's own component comes to its end first.
            stack.push_async_callback(tasks.end)
            examined, self._tally = await self._source(stack)
            sink: player.Sink = _Printer(self._form, sys.stdout)
            replayer = None
            if self._zone is not None:
                if "streams" in self._run:
                    _note(NOT_EXACT)
                replayer = await stack.enter_async_context(_in_zone(*self._zone, self._run, stop, tasks))
                sink = replayer
            telling = Tasks(tasks)
            telling.start(self._tell(), "progress")
            stack.push_async_callback(telling.end)
            started = time.monotonic()
            try:
                await unless(stop, self._play(examined, sink, replayer), tasks.failed())
            except player.ReplayFailed as exc:
                sys.stderr.write(f"tallystick: {exc.text}\n")
                _note("stopped there; --keep-going passes over what does not verify")
            finally:
                self._summary(time.monotonic() - started, replayer)
            if self._stay:
                _note("the zone stays up; Ctrl-C ends it")
                await unless(stop, tasks.failed())
        return 1 if self._tally.failed else 0

    async def _play(self, examined: AsyncIterator[Examined], sink: player.Sink, replayer: Replayer | None) -> None:
        options = self._options

        def told(failure: Failure) -> None:
            if options.keep_going:
                sys.stderr.write(f"tallystick: {failure}\n")

        await player.play(
            examined,
            sink,
            self._tally,
            schedule=options.schedule,
            clock=time.time_ns,
            sleep=asyncio.sleep,
            keep_going=options.keep_going,
            limit=options.limit,
            stopped=self._stop.asked.is_set,
            on_failure=told,
        )
        if replayer is not None:
            await replayer.settled()

    async def _source(self, stack: contextlib.AsyncExitStack) -> tuple[AsyncIterator[Examined], Tally]:
        selection = self._options.selection
        if self._source_keys is None:
            from tallystick.record.place import locate
            from tallystick.replay.reader import ArchiveReader

            archive = ArchiveReader(locate(self._directory, self._root), selection, self._progress)
            self._held = "; ".join(
                f"{stream} {first} to {last}, stored {time_text(since)} to {time_text(until)}"
                for stream, (first, last, since, until) in archive.held().items()
            )
            return _breathing(iter(archive)), archive.judge.tally
        from tallystick.replay.bus import BusReader

        secrets = {name: self._source_keys[name] for name in Deployment.load(self._directory).secret_names("console")}
        setup = process.load_setup(self._directory, "console", secrets)
        pinned = public_key_bytes(self._root.read_text("ascii").strip()) if self._root is not None else None
        judge = Judge([Verifier(root) for root in setup.deployment.load_trust(pinned)], judged=False)
        link = setup.link(setup.authority(), Metrics())
        stack.push_async_callback(link.stop)
        await unless(self._stop, link.start())
        reader = BusReader(setup.spec, link, judge, selection, setup.log)
        examined = reader.__aiter__()
        stack.push_async_callback(examined.aclose)
        return examined, judge.tally

    def _progress(self, stream: str, rows: int) -> None:
        del stream
        self._read += rows

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(PROGRESS_S)
            if sys.stderr.isatty() and not (self._zone is None and sys.stdout.isatty()):
                _note(f"{self._tally.messages:,} messages, {self._tally.events:,} events, {self._read:,} rows read")

    def _summary(self, seconds: float, replayer: Replayer | None) -> None:
        tally = self._tally
        aside = ", ".join(
            f"{code} {count} (first at {tally.first_aside[code]})" for code, count in sorted(tally.aside.items())
        )
        if not tally.messages and not tally.failed:
            _note(f"nothing matched. There is: {self._held or 'nothing'}{f'; set aside: {aside}' if aside else ''}")
            return
        rate = f" ({tally.events / seconds:,.0f}/s)" if seconds > 1 else ""
        parts = [f"{tally.messages:,} messages with {tally.events:,} events verified in {seconds:.1f} s{rate}"]
        if replayer is not None:
            parts.append(f"{replayer.published:,} published in the zone, {replayer.skipped:,} not played there")
        if aside:
            parts.append(f"set aside, without effect then and now: {aside}")
        if tally.failed:
            parts.append(f"{tally.failed:,} FAILED")
        _note("; ".join(parts))


async def _breathing(items: Iterator[Examined]) -> AsyncIterator[Examined]:
    """The items, with a turn for everybody else after some of them."""
    for number in itertools.count():
        item = next(items, None)
        if item is None:
            return
        if number % 32 == 0:
            await asyncio.sleep(0)
        yield item


@contextlib.asynccontextmanager
async def _in_zone(
    zone: Deployment, keystore: Keystore, run: list[str], stop: Stop, tasks: Tasks
) -> AsyncIterator[Replayer]:
    """A replayer with a session in a running zone; broker, authority and `run` are started unless the zone is up.

    What ends it too early fails in `tasks`.
    """
    supervisor = None
    if not any(name == "authority" for name, _ in status.processes(zone)):
        supervisor = Supervisor(zone, keystore, report=_note)
        unknown = [name for name in run if name not in supervisor.bus.components]
        if unknown or REPLAY in run:
            known = sorted(set(supervisor.bus.components) - {REPLAY})
            raise ConfigError(
                "COMPONENT", f"a zone has no component {', '.join(unknown) or REPLAY}; it has {', '.join(known)}"
            )
        apart = frozenset(supervisor.bus.components) - {"authority", *run}
        supervisor = Supervisor(zone, keystore, report=_note, apart=apart)
    elif run:
        raise ConfigError("RUNNING", f"{zone.directory} is up: what runs there is up to its `tallystick up`")
    try:
        if supervisor is not None:
            stop.at_once = supervisor.end_at_once
            await unless(stop, supervisor.start())
            tasks.start(supervisor.failed(), "zone")
        secrets = {name: keystore[name] for name in zone.secret_names(REPLAY)}
        setup = process.load_setup(zone.directory, REPLAY, secrets)
        replayer, leaving = Replayer(), asyncio.Event()

        async def run_component() -> None:
            await process.run(setup, replayer, leaving)
            if not leaving.is_set():
                raise Unverified(
                    "REPLAY_ENDED", f"the replay's component ended before the last message; see {zone.log(REPLAY)}"
                )

        running = tasks.start(run_component(), "replay")
        try:
            await unless(stop, replayer.started.wait(), tasks.failed())
            yield replayer
        finally:
            leaving.set()
            await asyncio.wait((running,))
        running.result()
    finally:
        if supervisor is not None:
            await supervisor.stop()
