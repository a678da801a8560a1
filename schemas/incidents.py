"""An answer to a compromise, step by step, as the operator signed it: what the record holds of it besides its effects.

Each step is a signed note of its own, published by the breaker when it is done (`security.IncidentStep`): whoever answers an
incident cannot be the only one who says later what was done, and in which order.
"""

from __future__ import annotations

import re
from typing import Final, Literal

import msgspec

from tallystick.schemas.errors import Malformed, Unverified
from tallystick.schemas.note import open_note
from tallystick.schemas.subjects import check_name
from tallystick.schemas.trust import TrustRoot, decode_document

StepName = Literal["halted", "cancelled", "revoked", "rotated", "proven", "closed"]
MAX_TEXT: Final = 2_000
_ID: Final = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}")
_HASH: Final = re.compile(r"[0-9a-f]{64}")


class Incident(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One step of the answer to the compromise of `target`, a component or a key (`TOKEN/ID`).

    `incident` names the whole answer; `number` counts its steps from 1; `at` is Unix ns; `done` whether it succeeded; `evidence`
    is the SHA-256 of the evidence as it was after the step, lower-case hex.
    """

    kind: Literal["tallystick-incident/1"] = "tallystick-incident/1"
    deployment: str
    incident: str
    target: str
    number: int
    step: StepName
    at: int
    done: bool
    text: str
    evidence: str

    def __post_init__(self) -> None:
        check_name(self.deployment, "deployment")
        if not _ID.fullmatch(self.incident) or not _HASH.fullmatch(self.evidence):
            raise Malformed("INCIDENT", f"incident {self.incident[:64]!r}, evidence {self.evidence[:80]!r}")
        if not 1 <= self.number < 1_000 or not 0 <= self.at < 2**63 or len(self.text) > MAX_TEXT:
            raise Malformed("INCIDENT", f"step {self.number} at {self.at}, a text of {len(self.text)} characters")


def open_incident(note: str, root: TrustRoot) -> Incident:
    """The step in `note` if an operator of `root` signed it for this deployment.  Raises `Malformed` or `Unverified`."""
    text, _ = open_note(note, root.operator_keys)
    incident = decode_document(text, Incident)
    if incident.deployment != root.deployment:
        raise Unverified("INCIDENT_SCOPE", f"an incident of deployment {incident.deployment}")
    return incident
