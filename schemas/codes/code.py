"""What stands in the registry for one code."""

from __future__ import annotations

import enum
from typing import Final

import msgspec


class Said(enum.Flag):
    """Where a code is met."""

    ERROR = enum.auto()
    DENIAL = enum.auto()
    REFUSAL = enum.auto()
    DEAD = enum.auto()
    ORDER = enum.auto()
    NOTICE = enum.auto()
    ALERT = enum.auto()
    FINDING = enum.auto()


ERROR: Final = Said.ERROR
DENIAL: Final = Said.DENIAL
REFUSAL: Final = Said.REFUSAL
DEAD: Final = Said.DEAD
ORDER: Final = Said.ORDER
NOTICE: Final = Said.NOTICE
ALERT: Final = Said.ALERT
FINDING: Final = Said.FINDING

SAID: Final = {
    ERROR: "an error that ends a command or a process, or that its log shows",
    DENIAL: "a denial in a decision of the gateway",
    REFUSAL: "a refusal of custody or of the authority, in answer to a request",
    DEAD: "a dead letter of whoever read the message",
    ORDER: "an order's event, from execution",
    NOTICE: "a notice to security people",
    ALERT: "an alert of a detector",
    FINDING: "a finding of the audit",
}


class Code(msgspec.Struct, frozen=True):
    """One stable code: its `name`, where it is `said`, what it means, and what a person does about it.

    A name with a `*` is a family: what stands there is a number, or another code.
    """

    name: str
    said: Said
    meaning: str
    remedy: str
