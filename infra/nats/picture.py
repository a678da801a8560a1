"""docs/topology.md, drawn from the topology, and the check that what is committed is what is drawn."""

from __future__ import annotations

import difflib
from pathlib import Path

from tallystick.infra.nats.topology import QUOTA_BURST_S, Topology, publish_kind, stream_payload, stream_subjects
from tallystick.schemas.errors import ConfigError
from tallystick.schemas.subjects import overlaps


def render_docs(topology: Topology) -> str:
    """docs/topology.md: the picture and the tables, with one strategy and one observer called NAME standing for all."""
    bus = topology.expand(("name",), ("name",))
    lines = [
        "# Topology",
        "",
        "Generated from `infra/nats/topology.toml` by `tallystick topology render`; do not edit.",
        "",
        "Every component has an account of its own on the broker and may do exactly what stands here. JetStream lives in "
        "account CORE, which no component can log in to. Besides what is drawn, every component publishes "
        + ", ".join(f"`{p.replace('{component}', 'COMPONENT')}`" for p in topology.every_publishes)
        + " and reads "
        + ", ".join(f"`{p}`" for p in topology.every_reads)
        + "; `audit` reads everything.",
        "",
        "```mermaid",
        "flowchart LR",
    ]
    lines += [f'    {_id(c.name)}["{_shown(c.name)}"]' for c in bus.components.values()]
    drawn: dict[tuple[str, str], list[str]] = {}
    for component in bus.components.values():
        own = component.publishes[: len(component.publishes) - len(topology.every_publishes)]
        for pattern in own:
            kind = publish_kind(pattern, "").name
            for reader in bus.components.values():
                heard = any(overlaps(pattern, read) for filters in reader.reads.values() for read in filters)
                if heard and reader.name not in ("audit", component.name) and kind != "cred":
                    drawn.setdefault((component.name, reader.name), []).append(kind)
    looped = {(entry.reader, kind) for entry in topology.feedback for kind in entry.kinds}
    for (source, target), kinds in drawn.items():
        template = bus.components[target].template
        for arrow, chosen in (
            ("-->", [k for k in kinds if (template, k) not in looped]),
            ("-.->", [k for k in kinds if (template, k) in looped]),
        ):
            if chosen:
                lines.append(f'    {_id(source)} {arrow}|"{", ".join(chosen)}"| {_id(target)}')
    lines += [
        "```",
        "",
        "Dotted arrows are feedback.",
        "",
        "## Components",
        "",
        "A message is at most as long as the longest of the component's kinds; a component with a quota that sends more",
        f"than it, over any {QUOTA_BURST_S} s, is cut off at the broker, revoked and its breaker tripped.",
        "",
        "| component | does | zone | credential | publishes | reads | message | quota |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for c in bus.components.values():
        reads = "; ".join(
            f"{stream}: {', '.join(f'`{_shown(r)}`' for r in filters)}" for stream, filters in c.reads.items()
        )
        if c.whole:
            reads = "every stream whole, whatever subject it holds, and how far it goes"
        publishes = ", ".join(f"`{_shown(p)}`" for p in c.publishes)
        quota = f"{c.quota.messages:,} messages/s, {c.quota.bytes:,} bytes/s" if c.quota else ""
        lines.append(
            f"| `{_shown(c.name)}` | {c.does} | {c.zone} | {c.lifetime_s} s | {publishes} | {reads} | {c.payload:,} bytes | {quota} |"
        )
    lines += [
        "",
        "## Streams",
        "",
        "| stream | holds | subjects | durability | bounds |",
        "|---|---|---|---|---|",
    ]
    for name, s in topology.streams.items():
        bounds = [
            f"{s.max_bytes:,} bytes" if s.max_bytes else "",
            f"{s.max_age_s:,} s" if s.max_age_s else "",
            f"{s.max_per_subject:,} messages a subject" if s.max_per_subject else "",
            f"{stream_payload(name):,} bytes a message",
        ]
        durability = "fsync on every write" if s.durability == "fsync" else "asynchronous"
        if s.locked:
            durability += ", no delete, no purge"
        subjects = ", ".join(f"`{p}`" for p in stream_subjects(name))
        lines.append(f"| {name} | {s.holds} | {subjects} | {durability} | {', '.join(filter(None, bounds))} |")
    lines += ["", "## Feedback", "", "| reader | hears again | why |", "|---|---|---|"]
    lines += [f"| `{f.reader}` | {', '.join(f'`{k}`' for k in f.kinds)} | {f.why} |" for f in topology.feedback]
    return "\n".join(lines) + "\n"


def _id(name: str) -> str:
    return name.replace("-", "_")


def _shown(text: str) -> str:
    return text.replace("strategy-name", "strategy-NAME").replace(".name.", ".NAME.")


def check_docs(topology: Topology, docs: Path) -> None:
    """Raise `ConfigError` unless the file `docs` is what `render_docs` gives."""
    want = render_docs(topology)
    try:
        have = docs.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError("TOPOLOGY_DOCS", f"{docs} cannot be read ({exc}): run `tallystick topology render`") from exc
    if have != want:
        changes = difflib.unified_diff(have.splitlines(), want.splitlines(), "committed", "generated", lineterm="", n=0)
        first = "\n".join(list(changes)[:6])
        raise ConfigError(
            "TOPOLOGY_DOCS", f"{docs} is not what is generated: run `tallystick topology render`\n{first}"
        )
