"""An operator's order to change the venue's API key of a component now.  Pure.

A signed note (`note`) whose text is canonical JSON:

    {"kind": "tallystick-rotation/1", "deployment": …, "component": …, "act": …, "key": …, "at": Unix ns}

- `rotate`: the keymaster changes the key; `reread`: the component reads from the vault which key it signs with, after a
  person changed the key by hand; `revoke`: the keymaster deletes `key` at once, which somebody else may use, and makes
  another one then.  `key` is its id in the component's token, "" for the others: an order that is carried twice meets a
  key that is not in use any more, and does nothing.
- It is for within a minute of `at`: one that was recorded and is played again later changes nothing.

Whoever carries it is not trusted: he can at most withhold it, or have it carried out once more within its minute, which
makes one more new key.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from tallystick.schemas.bounds import SECOND
from tallystick.schemas.errors import LeaseOver, Malformed, Unverified
from tallystick.schemas.note import open_note
from tallystick.schemas.subjects import check_name
from tallystick.schemas.trust import TrustRoot, decode_document

ORDER_NS: Final = 60 * SECOND
MAX_KEY: Final = 64


class RotationOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The document; see the module docstring."""

    kind: Literal["tallystick-rotation/1"] = "tallystick-rotation/1"
    deployment: str
    component: str
    act: Literal["rotate", "reread", "revoke"]
    at: int
    key: str = ""

    def __post_init__(self) -> None:
        check_name(self.component, "component")
        if not 0 <= self.at < 2**63:
            raise Malformed("ROTATION_ORDER", f"at {self.at}: Unix ns")
        if (self.act == "revoke") != bool(self.key) or len(self.key) > MAX_KEY:
            raise Malformed("ROTATION_ORDER", f"{self.act} of key {self.key[:MAX_KEY]!r}: a key is named to be revoked")


def open_rotation_order(note: str, root: TrustRoot, now: int) -> RotationOrder:
    """The order in `note` if an operator of `root` signed it for this deployment within a minute of `now` (Unix ns).

    Raises `Malformed` or `Unverified`; `LeaseOver` where all but the time is right.
    """
    text, _ = open_note(note, root.operator_keys)
    order = decode_document(text, RotationOrder)
    if order.deployment != root.deployment:
        raise Unverified("ROTATION_ORDER_SCOPE", f"an order for deployment {order.deployment}")
    root.component(order.component)
    if abs(now - order.at) > ORDER_NS:
        raise LeaseOver("ROTATION_ORDER_OVER", f"an order of {order.at}, it is {now} (Unix ns): order it again")
    return order
