"""What msgspec knows of our types, worked out before there are threads.

msgspec (0.22) works out what the fields of a Struct are when it is used for the first time, and shows a half-made answer
to a second thread that comes meanwhile: the process dies of a segmentation fault.  The supervisor, which has three things
made by threads at its start, did so.  What is imported after `prepare` is not covered.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import msgspec


def prepare() -> None:
    """To be called when everything is imported, before a second thread decodes anything; idempotent and then cheap."""
    for kind in _below(msgspec.Struct):
        # One that names what only type checkers import is never decoded.
        with contextlib.suppress(NameError):
            msgspec.json.Decoder(kind)


def _below(kind: type[msgspec.Struct]) -> Iterator[type[msgspec.Struct]]:
    for sub in kind.__subclasses__():
        yield sub
        yield from _below(sub)
