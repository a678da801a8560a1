"""Segments opened once, held against the manifest, and read through the descriptors that were checked.

Whoever writes in the archive meanwhile is noticed: a name that is given to another file is not followed, a file that is
written to has another time of change afterwards (`check_unchanged`).
"""

from __future__ import annotations

import os
import resource
import weakref
from collections.abc import Iterable
from pathlib import Path

from tallystick.record.files import FileRefused
from tallystick.record.manifest import Segment
from tallystick.record.parquet import LayoutError, read_layout
from tallystick.record.segment import open_segment


class Opened:
    """Open segments, each with the size, the hash and a layout that its manifest line allows.  Collected, they close."""

    def __init__(self, archive: Path, segments: Iterable[Segment]) -> None:
        """Raises `FileRefused`: a file is missing, no regular file, or not what the manifest names."""
        self._files: list[tuple[Segment, int, tuple[int, int]]] = []
        weakref.finalize(self, _close, self._files)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        for segment in sorted(segments, key=lambda s: (s.stream, s.first_seq)):
            with open_segment(archive, segment) as file:
                try:
                    read_layout(file, segment.rows)
                except LayoutError as exc:
                    raise FileRefused(exc.code, f"{segment.file}: {exc.text}") from exc
                descriptor = os.dup(file.fileno())
            self._files.append((segment, descriptor, _stamp(descriptor)))

    @property
    def paths(self) -> dict[str, list[str]]:
        """By stream, in its order, what names the open files to an engine that wants paths."""
        found: dict[str, list[str]] = {}
        for segment, descriptor, _ in self._files:
            found.setdefault(segment.stream, []).append(f"/proc/self/fd/{descriptor}")
        return found

    def check_unchanged(self) -> None:
        """Raise `FileRefused` if one of them was written to since it was opened."""
        for segment, descriptor, stamp in self._files:
            if _stamp(descriptor) != stamp:
                raise FileRefused("FILE_HASH", f"{segment.file} was changed while it was read")


def _stamp(descriptor: int) -> tuple[int, int]:
    # Not the inode's time of change: removing a replaced file moves that as well.
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns


def _close(files: list[tuple[Segment, int, tuple[int, int]]]) -> None:
    for _, descriptor, _ in files:
        os.close(descriptor)
