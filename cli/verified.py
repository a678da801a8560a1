"""What `tallystick audit verify` prints: what was held against which key, and what was found."""

from __future__ import annotations

from collections import Counter
from typing import Final

from tallystick.cli.rows import shown
from tallystick.record.place import Place, pinned_key
from tallystick.record.report import Report
from tallystick.record.sandbox import ns_text

# So many defects of one kind in one stream are printed with their places; the summary counts all.
MAX_PRINTED: Final = 8
MAX_LINES: Final = 400


def print_report(place: Place, report: Report) -> None:
    """Print a report."""
    _held_against(place, report)
    _covered(report)
    for (stream, code), count in sorted(report.kinds.items()):
        print(f"TAMPERED  {stream or 'archive'} {code} {count} times")
    printed: Counter[tuple[str, str]] = Counter()
    for problem in sorted(report.problems, key=lambda p: (p.stream, p.code)):
        printed[problem.stream, problem.code] += 1
        if printed[problem.stream, problem.code] <= MAX_PRINTED and sum(printed.values()) <= MAX_LINES:
            print(f"at        {shown(str(problem))}")
    for torn in report.torn:
        missing = ", ".join(map(str, torn.missing[:16]))
        where = f"{torn.component}/{torn.boot.hex()[:8]} {torn.stream} seq {torn.seq}"
        print(f"torn      {where}: index {missing} was never stored, its process ended in the middle of the flush")
    for note in report.notes:
        print(f"note      {shown(note)}")
    for (code, stream, component), place_ in sorted(report.places.items()):
        by = f", by {component}" if component else ""
        where = f"first at {stream} {place_.stream_seq}{by}"
        print(f"incident  {shown(code)} {place_.count} times, {shown(where)}: archived as evidence, without effect")
    counts = ", ".join(f"{report.status[s]} {s}" for s in ("ok", "late", "unlisted", "refused"))
    print(
        f"{report.messages} messages ({counts}), {report.events} events, {report.chains} chains, {len(report.torn)} torn, "
        f"{report.segments} segments, {report.entries} manifest lines, {report.checkpoints} checkpoints"
    )
    print("OK: everything verifies" if report.clean else "NOT CLEAN: see the positions above")


def _held_against(place: Place, report: Report) -> None:
    roots = f"trust roots 1 to {report.roots}" if report.roots else "no trust root: no seal could be judged"
    print(f"archive   {place.archive}, deployment {report.deployment or 'unknown'}, {roots}")
    beside = (
        ""
        if place.given
        else "; it lies beside the archive: who can write there can exchange it, give yours with --root"
    )
    print(f"key       {pinned_key(place).hex()} ({place.root}{beside})")


def _covered(report: Report) -> None:
    newest = report.covered
    if newest is None:
        print("covered   nothing: no checkpoint that audit sealed is there")
    else:
        print(
            f"covered   {newest.messages} messages in lines 1 to {newest.entries}, by the checkpoint sealed at "
            f"{ns_text(newest.time)} UTC: {newest.entries}:{newest.head}"
        )
    if report.open_lines:
        first = report.entries - report.open_lines + 1
        print(
            f"open      {report.open_messages} messages in lines {first} to {report.entries}: no checkpoint covers them; "
            "that nothing followed them only a checkpoint kept elsewhere can show (--expect)"
        )
