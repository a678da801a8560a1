"""Opening a segment: the file that the manifest names, byte for byte, and nothing that takes more than it may.

    with open_segment(archive, segment) as file:     # a regular file of the size and SHA-256 that its line names
        layout = read_layout(file, segment.rows)     # bounded: safe to decode in batches of `layout.batch_rows`
        parquet = pq.ParquetFile(file)

The descriptor that was checked is the one to read from: `/proc/self/fd/<n>` names it to engines that want a path.
"""

from __future__ import annotations

import hashlib
import os
from io import BufferedReader
from pathlib import Path

from tallystick.record.files import FileRefused, open_regular
from tallystick.record.manifest import Segment


def open_segment(directory: Path, segment: Segment) -> BufferedReader:
    """Open a segment that is, byte for byte, what its manifest line names.  Raises `FileRefused`."""
    file = open_regular(directory, segment.file)
    try:
        check_bytes(file, segment)
    except BaseException:
        file.close()
        raise
    return file


def check_bytes(file: BufferedReader, segment: Segment) -> None:
    """Raise `FileRefused` (`FILE_HASH`) unless an open file has the segment's size and SHA-256.

    Reads no more than that size, however large the file is; leaves the file at its beginning.
    """
    size = os.fstat(file.fileno()).st_size
    if size != segment.size:
        text = f"{segment.file} has {size} bytes, the manifest names {segment.size}: the file was changed or swapped"
        raise FileRefused("FILE_HASH", text)
    try:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
    except OSError as exc:
        raise FileRefused("FILE_UNREADABLE", f"{segment.file}: {exc.strerror}") from exc
    if digest != segment.sha256:
        text = (
            f"{segment.file} has SHA-256 {digest[:16]}…, the manifest names {segment.sha256[:16]}…: "
            "the file was changed or swapped"
        )
        raise FileRefused("FILE_HASH", text)
