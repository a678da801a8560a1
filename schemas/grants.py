"""An operator's word that a component's API key begins anew: after a theft, or where the component lost its key.  Pure.

A signed note (`note`) whose text is canonical JSON:

    {"kind": "tallystick-key-grant/1", "deployment": …, "component": …, "first": hex, "issued": Unix ns}

`first` is the SHA-256 of the new key.  Of two grants the one issued later counts, so that none is played back.
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from tallystick.schemas.errors import Malformed, Unverified
from tallystick.schemas.methods import ApiKey
from tallystick.schemas.note import open_note
from tallystick.schemas.subjects import check_name
from tallystick.schemas.trust import TrustRoot, decode_document


class KeyGrant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The document; see the module docstring."""

    kind: Literal["tallystick-key-grant/1"] = "tallystick-key-grant/1"
    deployment: str
    component: str
    first: str
    issued: int

    def __post_init__(self) -> None:
        check_name(self.component, "component")
        if not re.fullmatch("[0-9a-f]{64}", self.first) or not 0 <= self.issued < 2**63:
            raise Malformed("KEY_GRANT", f"issued {self.issued}, and a hash of 64 lower-case hex digits")


def open_key_grant(note: str, root: TrustRoot) -> KeyGrant:
    """The grant in `note` if an operator of `root` signed it for a component that shows API keys.

    Raises `Malformed` or `Unverified`.
    """
    text, _ = open_note(note, root.operator_keys)
    grant = decode_document(text, KeyGrant)
    if grant.deployment != root.deployment:
        raise Unverified("KEY_GRANT", f"an API key for deployment {grant.deployment}")
    if not isinstance(root.component(grant.component).method, ApiKey):
        raise Unverified("KEY_GRANT", f"{grant.component} proves itself by no API key")
    return grant
