"""What a process of a deployment is given of the environment of whoever started it: an allow-list.

Tokens, passwords and agents of the operator's shell stay there.  What user code needs besides is named in
`deployment.toml` (`env` of a strategy or an observer), and reaches that process alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

# Where programs and libraries lie, and how text, time and temporary files are dealt with.  Nothing that holds a secret.
PASSED_ON: Final = (
    "PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "HOME", "LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "TZ", "TZDIR", "TMPDIR",
    "SSL_CERT_FILE", "SSL_CERT_DIR",
)  # fmt: skip

# Memory that is free goes back to the system: glibc has two heaps a process instead of eight a core, and keeps a megabyte
# of each; Arrow has none of its own, which kept 50 MB of what audit needed for a moment.  What is asked for again and again
# comes from the heap and not from the system: TLS takes 256 KiB for each read, and a threshold that is set does not grow.
MEMORY: Final = {
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_TRIM_THRESHOLD_": "1048576",
    "MALLOC_MMAP_THRESHOLD_": "1048576",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
}


def environment(given: Mapping[str, str], wanted: Iterable[str] = ()) -> dict[str, str]:
    """`MEMORY`, and what is passed on of `given`: `PASSED_ON`, and the variables `wanted` by name."""
    names = (*PASSED_ON, *wanted)
    return MEMORY | {name: given[name] for name in names if name in given}
