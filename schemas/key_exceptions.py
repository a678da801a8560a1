"""An operator's leave to go on with an API key that is not as it should be: which defects, of whose key, until when.  Pure.

A signed note (`note`) whose text is canonical JSON:

    {"kind": "tallystick-key-exception/1", "deployment": …, "venue": …, "component": …, "defects": […],
     "start": Unix ns, "until": Unix ns, "reason": …}

- `defects` are names of `venues.keys.Defect`: a code, and for a right too many its setting as well
  (`KEY_TOO_BROAD enableFutures`).  So an exception for one right is none for the next that somebody ticks.
- It is for the keys of one component at one venue, whichever they are: keys change every day.
- It lasts 30 days at the most, and says why: it is read again when somebody asks how that could happen.

Whoever carries it is not trusted: he can at most withhold it, and then the key is refused.
"""

from __future__ import annotations

import re
from typing import Final, Literal

import msgspec

from tallystick.schemas.errors import LeaseOver, Malformed, Unverified
from tallystick.schemas.note import open_note
from tallystick.schemas.subjects import check_name
from tallystick.schemas.trust import HOUR_NS, MAX_REASON, TrustRoot, decode_document

MAX_EXCEPTION_NS: Final = 30 * 24 * HOUR_NS
MAX_DEFECTS: Final = 16
_DEFECT: Final = re.compile(r"KEY_[A-Z_]{3,40}( [A-Za-z0-9.]{1,64})?")


class KeyException(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The document; see the module docstring."""

    kind: Literal["tallystick-key-exception/1"] = "tallystick-key-exception/1"
    deployment: str
    venue: str
    component: str
    defects: tuple[str, ...]
    start: int
    until: int
    reason: str

    def __post_init__(self) -> None:
        check_name(self.venue, "venue")
        check_name(self.component, "component")
        if not 0 <= self.start < self.until <= self.start + MAX_EXCEPTION_NS:
            raise Malformed("KEY_EXCEPTION", f"from {self.start} until {self.until}: at most 30 days")
        named = len(set(self.defects)) == len(self.defects) and all(_DEFECT.fullmatch(d) for d in self.defects)
        if not named or not 1 <= len(self.defects) <= MAX_DEFECTS:
            raise Malformed("KEY_EXCEPTION", f"{len(self.defects)} defects: 1 to {MAX_DEFECTS}, each once, by its name")
        if not self.reason.strip() or len(self.reason) > MAX_REASON:
            raise Malformed("KEY_EXCEPTION", f"a reason of {len(self.reason)} characters: 1 to {MAX_REASON}")


def open_key_exception(note: str, root: TrustRoot, now: int) -> KeyException:
    """The exception in `note` if an operator of `root` signed it for this deployment and it holds at `now` (Unix ns).

    Raises `Malformed` or `Unverified`; `LeaseOver` where all but the time is right.
    """
    text, _ = open_note(note, root.operator_keys)
    exception = decode_document(text, KeyException)
    if exception.deployment != root.deployment:
        raise Unverified("KEY_EXCEPTION_SCOPE", f"an exception for deployment {exception.deployment}")
    if exception.venue not in root.venues:
        raise Unverified("KEY_EXCEPTION_SCOPE", f"trust root {root.number} has no venue {exception.venue}")
    root.component(exception.component)
    if now < exception.start:
        raise Unverified("KEY_EXCEPTION_EARLY", f"it begins at {exception.start}, it is {now} (Unix ns)")
    if now >= exception.until:
        raise LeaseOver("KEY_EXCEPTION_OVER", f"it held from {exception.start} until {exception.until}, it is {now}")
    return exception
