"""The topology: which component publishes and reads what, on which streams.

`topology.toml` is parsed strictly; each of these is a `ConfigError` that says what and where:

- an unknown key, a missing one, a value of the wrong type, a key or an entry given twice;
- a subject of no known kind, a read that no kind matches, a stream that `KINDS` does not know or that is missing;
- a name with `*`, `>` or anything else that `check_name` refuses;
- two components that publish the same subject, reads of one component that overlap;
- a loop (component → subject → component) that `[[feedback]]` does not declare, or a declared one that does not exist.

The file is trusted: whoever changes it changes who may publish what.  A change takes effect on the broker
through operator-signed account tokens, and at verifiers through the operator-signed trust root.
"""

from __future__ import annotations

import functools
import itertools
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec

from tallystick.schemas.bounds import REPEATABLE_S
from tallystick.schemas.errors import ConfigError, Malformed
from tallystick.schemas.seal import max_payload
from tallystick.schemas.subjects import KINDS, STREAMS, Kind, check_name, overlaps

DEFAULT_PATH: Final = Path(__file__).with_name("topology.toml")
# Where a component with a JetStream of its own finds the services that it imports from CORE.
LOCAL_API: Final = "core.JS.API"
CORE_API: Final = "$JS.API"
STATE_STREAM: Final = "STATE"
LEASE_BUCKET: Final = "leases"
# A deployment whose id begins so is a replay zone: recorded events are played there, and nothing in it can trade.
REPLAY_PREFIX: Final = "replay-"
REPLAY: Final = "replay"
KEYMASTER: Final = "keymaster"

# Bursts of so many seconds' worth are no flood: a strategy that cancels everything, a reader that starts.
QUOTA_BURST_S: Final = 8
# `Nats-Msg-Id` with its value, and what a client may add to it.
HEADER_BYTES: Final = 512

Zone = Literal["control", "core", "edge", "user", "vault", "evidence", "venue"]


# What reaches a venue, or holds a key to one.
_OUTWARD: Final = ("edge", "vault", "venue")
# Kinds (by their first word) in which a deployment speaks of itself.
_ITS_OWN: Final = ("cred", "audit", "guard", "dead")


class StreamSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One stream; bounds are in bytes, seconds and messages a subject (0: none).

    `durability` fsync: every write reaches the disk before its ack; async: some milliseconds later, and its one writer
    stores again what a broker lost; `locked`: nothing in it can be deleted or purged.
    """

    holds: str
    durability: Literal["fsync", "async"]
    locked: bool = False
    max_bytes: int = 0
    max_age_s: int = 0
    max_per_subject: int = 0
    duplicate_window_s: int = 120


class _Every(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    publishes: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()


class Quota(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a component may send to the broker, a second: `messages` of any kind, and their `bytes`.

    In bursts `QUOTA_BURST_S` times that.  Whoever sends more is cut off, revoked and tripped by the authority.
    """

    messages: int
    bytes: int


MethodName = Literal["certificate", "service-account", "hardware-token", "api-key"]


class ComponentSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One component as the file states it; `lifetime_s` is that of its credentials (R11).

    `whole`: it reads every stream without a filter, whatever stands there, and may ask how far each goes.
    `linger_ms`: it reads along, off an order's way: what was stored within so long is fetched together.
    `method`: how it proves itself besides mutual TLS (R12, `schemas.methods`).
    """

    does: str
    folder: str
    zone: Zone
    lifetime_s: int
    publishes: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    each: Literal["strategy", "observer", ""] = ""
    state_bytes: int = 0
    whole: bool = False
    linger_ms: int = 0
    quota: Quota | None = None
    method: MethodName = "certificate"


class Feedback(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A wanted loop: `reader` reads `kinds` that it itself or somebody downstream of it publishes."""

    reader: str
    kinds: tuple[str, ...]
    why: str


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    version: Literal[1]
    streams: dict[str, StreamSpec]
    every: _Every
    components: dict[str, ComponentSpec]
    feedback: tuple[Feedback, ...] = ()


class Component(msgspec.Struct, frozen=True, kw_only=True):
    """One concrete component.

    `name` is its identity name, its durables' name and its account's; `publishes` are patterns with one `*` per
    free token; `reads` are the filters of its durable, by stream; `state_bytes` above 0: it has a JetStream of its own.
    `whole`: its durables have no filter at all, and it may ask how far each stream goes.
    """

    name: str
    template: str
    does: str
    folder: str
    zone: Zone
    lifetime_s: int
    publishes: tuple[str, ...]
    reads: dict[str, tuple[str, ...]]
    strategy: str = ""
    state_bytes: int = 0
    whole: bool = False
    linger_ms: int = 0
    quota: Quota | None = None
    method: MethodName = "certificate"

    @property
    def inbox(self) -> str:
        """The only subject prefix that it may subscribe to (`inbox_prefix` of its connection)."""
        return f"_INBOX_{self.name}"

    @property
    def api(self) -> str:
        """The prefix of CORE's JetStream API as this component sees it."""
        return LOCAL_API if self.state_bytes else CORE_API

    @property
    def payload(self) -> int:
        """The most bytes, headers included, of any message that it may publish: what the broker takes from it."""
        return max(max_payload(publish_kind(pattern, self.name).name) for pattern in self.publishes) + HEADER_BYTES

    def next_subject(self, stream: str) -> str:
        """Where it asks for the next messages of `stream`."""
        return f"{self.api}.CONSUMER.MSG.NEXT.{stream}.{self.name}"

    def reset_subject(self, stream: str) -> str:
        """Where it rewinds its durable on `stream`."""
        return f"{self.api}.CONSUMER.RESET.{stream}.{self.name}"

    @property
    def probe(self) -> str:
        """The durable with which a component that reads whole streams asks, by rewinding it, how much there is."""
        return f"{self.name}-end"

    def end_subject(self, stream: str) -> str:
        """Where it asks that of `stream`."""
        return f"{self.api}.CONSUMER.RESET.{stream}.{self.probe}"

    def filters(self, stream: str) -> tuple[str, ...]:
        """The filters of its durable on `stream`; none: all that is stored there."""
        return () if self.whole else self.reads[stream]


class Bus(msgspec.Struct, frozen=True, kw_only=True):
    """A topology with its strategies filled in: what a deployment's broker looks like."""

    streams: dict[str, StreamSpec]
    components: dict[str, Component]

    def component(self, name: str) -> Component:
        """The component `name`.  Raises `ConfigError`."""
        found = self.components.get(name)
        if found is None:
            raise ConfigError("COMPONENT", f"no component {name!r}; there are {', '.join(self.components)}")
        return found


class Topology(msgspec.Struct, frozen=True, kw_only=True):
    """The parsed and checked file.  `expand` gives the bus of a deployment."""

    source: str
    streams: dict[str, StreamSpec]
    every_publishes: tuple[str, ...]
    every_reads: tuple[str, ...]
    templates: dict[str, ComponentSpec]
    feedback: tuple[Feedback, ...]

    def expand(self, strategies: Sequence[str], observers: Sequence[str] = ()) -> Bus:
        """The bus with one component per strategy and observer.  Raises `ConfigError` for a name that cannot be one."""
        components: dict[str, Component] = {}
        each = {"": ("",), "strategy": strategies, "observer": observers}
        for what, names in (("strategy", strategies), ("observer", observers)):
            for name in sorted(names):
                _name(name, f"{what} {name!r}")
                if names.count(name) > 1:
                    raise ConfigError("TOPOLOGY_DUPLICATE", f"{what} {name!r} is given twice")
        for template, spec in self.templates.items():
            for one in each[spec.each]:
                component = self._component(template, spec, one)
                if component.name in components:
                    raise ConfigError(
                        "TOPOLOGY_DUPLICATE", f"{self.source}: two components are called {component.name!r}"
                    )
                components[component.name] = component
        return Bus(streams=self.streams, components=components)

    def _component(self, template: str, spec: ComponentSpec, strategy: str) -> Component:
        name = f"{template}-{strategy}" if strategy else template
        _name(name, f"{self.source}: component {name!r}")

        def filled(patterns: Iterable[str]) -> Iterator[str]:
            for pattern in patterns:
                yield pattern.replace("{component}", name).replace("{strategy}", strategy or "{strategy}")

        where = f"{self.source}: components.{template}"
        publishes = tuple(filled((*spec.publishes, *self.every_publishes)))
        for pattern in publishes:
            publish_kind(pattern, f"{where}.publishes")
        reads: dict[str, list[str]] = {}
        wanted = (p for s in self.streams for p in stream_subjects(s)) if spec.whole else self.every_reads
        for pattern in filled((*spec.reads, *wanted)):
            kinds = _read_kinds(pattern, f"{where}.reads")
            reads.setdefault(kinds[0].stream, []).append(pattern)
        for patterns in (publishes, *reads.values()):
            for i, one in enumerate(patterns):
                for other in patterns[:i]:
                    if overlaps(one, other):
                        raise ConfigError(
                            "TOPOLOGY_DUPLICATE", f"{where}: {one!r} and {other!r} cover the same subjects"
                        )
        return Component(
            name=name,
            template=template,
            does=spec.does,
            folder=spec.folder,
            zone=spec.zone,
            lifetime_s=spec.lifetime_s,
            publishes=publishes,
            reads={stream: tuple(reads[stream]) for stream in self.streams if stream in reads},
            strategy=strategy if spec.each == "strategy" else "",
            state_bytes=spec.state_bytes,
            whole=spec.whole,
            linger_ms=spec.linger_ms,
            quota=spec.quota,
            method=spec.method,
        )


def stream_subjects(stream: str) -> tuple[str, ...]:
    """The subjects that `stream` stores: everything under the first tokens of its kinds."""
    return tuple(dict.fromkeys(f"{kind.name.split('.')[0]}.>" for kind in KINDS.values() if kind.stream == stream))


def stream_payload(stream: str) -> int:
    """The most bytes of one message in `stream`, its headers included: the widest of its kinds."""
    return max(max_payload(kind.name) for kind in KINDS.values() if kind.stream == stream) + HEADER_BYTES


def deployed(deployment: str, strategies: Sequence[str], observers: Sequence[str], *, rotates: bool = False) -> Bus:
    """The bus of the deployment of this id: the shipped topology, or for a replay zone what `replay_zone` makes of it.

    The id decides alone, and the trust root signs it: no file can turn a live deployment into a zone, or back.  There is a
    keymaster where it `rotates` keys.
    """
    return _deployed(deployment, tuple(strategies), tuple(observers), rotates)


# What is shipped does not change while we run, and a start asks a dozen times.
@functools.lru_cache(maxsize=8)
def _deployed(deployment: str, strategies: tuple[str, ...], observers: tuple[str, ...], rotates: bool) -> Bus:
    topology = load()
    if not rotates:
        kept = {name: spec for name, spec in topology.templates.items() if name != KEYMASTER}
        topology = msgspec.structs.replace(topology, templates=kept)
    return (replay_zone(topology) if deployment.startswith(REPLAY_PREFIX) else topology).expand(strategies, observers)


def replay_zone(topology: Topology) -> Topology:
    """The topology of a replay zone: nobody who faces a venue, and one `replay` that publishes what was recorded.

    - Components of the zones edge, vault and venue do not exist: no key, no account, no custody, no execution.
    - `replay` publishes every kind but what a deployment states about itself: `cred` (its own authority's
      sessions), `audit`, `guard` and `dead`.
    - Everybody else reads and publishes as always, so that detectors and the gateway can be run on the recording.
    """
    kept = {name: spec for name, spec in topology.templates.items() if spec.zone not in _OUTWARD}
    kept[REPLAY] = ComponentSpec(
        does="publishes recorded events again",
        folder=REPLAY,
        zone="user",
        lifetime_s=300,
        publishes=tuple(kind.pattern for kind in KINDS.values() if kind.name.split(".")[0] not in _ITS_OWN),
    )
    return msgspec.structs.replace(topology, source=f"{topology.source} (replay zone)", templates=kept)


def parse(text: str, source: str) -> Topology:
    """Parse and check a topology; `source` names it in errors.  Raises `ConfigError`."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError("TOPOLOGY_SYNTAX", f"{source}: {exc}") from exc
    try:
        file = msgspec.convert(data, _File)
    except msgspec.ValidationError as exc:
        raise ConfigError("TOPOLOGY", f"{source}: {exc}") from exc
    for stream in file.streams:
        if stream not in STREAMS:
            raise ConfigError("TOPOLOGY_STREAM", f"{source}: unknown stream {stream!r}; known: {', '.join(STREAMS)}")
    for stream in STREAMS:
        if stream not in file.streams:
            raise ConfigError("TOPOLOGY_STREAM", f"{source}: stream {stream} is missing: its subjects would be lost")
    for name, stream_spec in file.streams.items():
        for field in ("max_bytes", "max_age_s", "max_per_subject", "duplicate_window_s"):
            if getattr(stream_spec, field) < 0:
                raise ConfigError("TOPOLOGY_STREAM", f"{source}: streams.{name}.{field} must not be negative")
        if stream_spec.duplicate_window_s <= REPEATABLE_S:
            raise ConfigError(
                "TOPOLOGY_STREAM",
                f"{source}: streams.{name}.duplicate_window_s is {stream_spec.duplicate_window_s}, and what is sent again "
                f"after {REPEATABLE_S} s would be stored twice",
            )
    for name, spec in file.components.items():
        _name(name, f"{source}: components.{name}")
        _name(spec.folder.replace("_", "-"), f"{source}: components.{name}.folder")
        if not 0 < spec.lifetime_s <= 900:
            raise ConfigError(
                "TOPOLOGY_LIFETIME", f"{source}: components.{name}.lifetime_s is {spec.lifetime_s}, not 1 to 900"
            )
        if spec.quota is not None and min(spec.quota.messages, spec.quota.bytes) <= 0:
            raise ConfigError("TOPOLOGY_QUOTA", f"{source}: components.{name}.quota must be above zero")
    topology = Topology(
        source=source,
        streams=file.streams,
        every_publishes=file.every.publishes,
        every_reads=file.every.reads,
        templates=file.components,
        feedback=file.feedback,
    )
    # Two strategies, so that a pattern which reaches from one into the other is seen.
    bus = topology.expand(("a", "b"), ("a", "b"))
    _check_owners(bus, source)
    _check_writers(bus, source)
    _check_loops(bus, file.feedback, source)
    return topology


def load(path: Path = DEFAULT_PATH) -> Topology:
    """The topology in `path`.  Raises `ConfigError`."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError("TOPOLOGY_FILE", f"{path} cannot be read: {exc}") from exc
    return parse(text, path.name)


def _name(name: str, where: str) -> None:
    try:
        check_name(name)
    except Malformed as exc:
        raise ConfigError("TOPOLOGY_NAME", f"{where}: {exc.text}") from exc


def publish_kind(pattern: str, where: str) -> Kind:
    """The one kind that a publish pattern is of; its fields are names or `*`."""
    for kind in KINDS.values():
        head = f"{kind.name}." if kind.fields else kind.name
        fields = pattern.removeprefix(head).split(".") if kind.fields else []
        if pattern.startswith(head) and len(fields) == len(kind.fields) and (kind.fields or pattern == kind.name):
            for field in fields:
                if field != "*":
                    _name(field, f"{where}: {pattern!r}")
            return kind
    raise ConfigError(
        "TOPOLOGY_SUBJECT", f"{where}: {pattern!r} is no kind of subject with its fields; known: {_known()}"
    )


def _read_kinds(pattern: str, where: str) -> list[Kind]:
    """The kinds that a read covers: all of one stream."""
    kinds = [kind for kind in KINDS.values() if overlaps(pattern, kind.pattern)]
    literal = [part for part in pattern.split(".") if part != "*"]
    if not kinds or not literal or ">" in pattern[:-1] or pattern[0] in "*>":
        raise ConfigError("TOPOLOGY_SUBJECT", f"{where}: {pattern!r} matches no kind of subject; known: {_known()}")
    streams = {kind.stream for kind in kinds}
    if len(streams) > 1:
        raise ConfigError("TOPOLOGY_SUBJECT", f"{where}: {pattern!r} reaches over streams {', '.join(sorted(streams))}")
    for part in literal:
        if part != ">":
            _name(part, f"{where}: {pattern!r}")
    return kinds


def _known() -> str:
    return ", ".join(kind.pattern for kind in KINDS.values())


def _check_owners(bus: Bus, source: str) -> None:
    owned: list[tuple[str, str]] = []
    for component in bus.components.values():
        for pattern in component.publishes:
            for other, name in owned:
                if name != component.name and overlaps(pattern, other):
                    raise ConfigError(
                        "TOPOLOGY_OWNER",
                        f"{source}: {component.name} and {name} both publish {pattern!r}: one owner each",
                    )
            owned.append((pattern, component.name))


def _check_writers(bus: Bus, source: str) -> None:
    for stream, spec in bus.streams.items():
        writers = [
            component.name
            for component in bus.components.values()
            if any(publish_kind(pattern, "").stream == stream for pattern in component.publishes)
        ]
        if spec.durability == "async" and len(writers) > 1:
            raise ConfigError(
                "TOPOLOGY_WRITERS",
                f"{source}: {' and '.join(writers)} write to {stream}, which is async: lost messages could not be put "
                "back where they lay; fsync it",
            )


def _edges(bus: Bus) -> Iterator[tuple[str, str, str]]:
    """(publisher, kind, reader), by template name: who hears whom."""
    for publisher in bus.components.values():
        for pattern in publisher.publishes:
            for reader in bus.components.values():
                for filters in reader.reads.values():
                    if any(overlaps(pattern, read) for read in filters):
                        yield publisher.template, publish_kind(pattern, "").name, reader.template


def _check_loops(bus: Bus, feedback: tuple[Feedback, ...], source: str) -> None:
    edges = set(_edges(bus))
    forward: dict[str, dict[str, str]] = {component.template: {} for component in bus.components.values()}
    declared: set[tuple[str, str]] = set()
    for entry in feedback:
        for kind in entry.kinds:
            if (entry.reader, kind) in declared:
                raise ConfigError("TOPOLOGY_FEEDBACK", f"{source}: feedback {kind} to {entry.reader} is declared twice")
            if not any(edge[1:] == (kind, entry.reader) for edge in edges):
                raise ConfigError(
                    "TOPOLOGY_FEEDBACK", f"{source}: feedback {kind!r} to {entry.reader!r} does not exist"
                )
            declared.add((entry.reader, kind))
    for publisher, kind, reader in sorted(edges):
        if (reader, kind) not in declared:
            forward[publisher][reader] = kind
    done: set[str] = set()
    for start in forward:
        _visit(start, forward, [], done, source)


def _visit(node: str, forward: Mapping[str, Mapping[str, str]], path: list[str], done: set[str], source: str) -> None:
    if node in path:
        loop = [*path[path.index(node) :], node]
        steps = " → ".join([loop[0], *(f"{forward[a][b]} → {b}" for a, b in itertools.pairwise(loop))])
        raise ConfigError("TOPOLOGY_CYCLE", f"{source}: {steps}: declare it in [[feedback]] with its reason, or cut it")
    if node in done:
        return
    path.append(node)
    for reader in forward[node]:
        _visit(reader, forward, path, done, source)
    path.pop()
    done.add(node)
