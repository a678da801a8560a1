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
    "SSL_CERT_FILE", "SSL_CERT_DIR", "TALLYSTICK_PKCS11_MODULE",
)  # fmt: skip


def environment(given: Mapping[str, str], wanted: Iterable[str] = ()) -> dict[str, str]:
    """What is passed on of `given`: `PASSED_ON`, and the variables `wanted` by name."""
    names = (*PASSED_ON, *wanted)
    return {name: given[name] for name in names if name in given}
