"""The registry of error codes: what each means, where it is met, and what a person does about it.

- Each code that product code can say stands here, and no other; a test reads both.
- A code means one thing, whoever says it, and keeps its name between versions.
- docs/denial-codes.md and the tables of docs/troubleshooting.md are made from here (`tallystick explain --markdown`).

The registry is for people.  Nothing decides by it: control flow tells errors apart by their types (`schemas.errors`).
"""

from __future__ import annotations

from typing import Final

from tallystick.schemas.codes import (
    bus,
    custody,
    deployment,
    gateway,
    identity,
    keys,
    record,
    rotation,
    sessions,
    vault,
    venue,
    wire,
)
from tallystick.schemas.codes.code import Code

# By domain, in the order in which the documents show them.
DOMAINS: Final[dict[str, tuple[Code, ...]]] = {
    "Deployment and commands": deployment.CODES,
    "Keys and secrets": keys.CODES,
    "Vault": vault.CODES,
    "Orders: the gateway": gateway.CODES,
    "Orders: custody and execution": custody.CODES,
    "Venue and market": venue.CODES,
    "API keys at the venue": rotation.CODES,
    "Trust and certificates": identity.CODES,
    "Sessions": sessions.CODES,
    "Broker, topology, streams": bus.CODES,
    "Sealed messages": wire.CODES,
    "Record and replay": record.CODES,
}
CODES: Final[dict[str, Code]] = {code.name: code for domain in DOMAINS.values() for code in domain}


def find(name: str) -> Code | None:
    """The code of that name, or the family that it belongs to; None where there is neither."""
    if name in CODES:
        return CODES[name]
    families = (code for code in CODES.values() if "*" in code.name)
    return next((code for code in families if _of(code.name, name)), None)


def _of(family: str, name: str) -> bool:
    before, after = family.split("*")
    rest = name.removeprefix(before).removesuffix(after)
    if not (name.startswith(before) and name.endswith(after) and rest):
        return False
    return rest.isdigit() or rest in CODES
