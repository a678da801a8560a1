"""The house rules' files: read once, named by one digest, which the operator signs in the trust root.

The folder is not trusted: an attacker who controls it can at most stop the gateway from starting.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

import msgspec

from tallystick.schemas.errors import ConfigError

# A policy text beyond this is a mistake, not a policy; it bounds what start-up parses.
MAX_TEXT: Final = 1_000_000


class HouseRules(msgspec.Struct, frozen=True):
    """The text of every `*.cedar` and of the one `*.cedarschema`; `digest` covers names and texts, in order of name."""

    folder: Path
    policies: dict[Path, str]
    schema: Path
    schema_text: str
    digest: bytes


def read_house_rules(folder: Path) -> HouseRules:
    """Raises `ConfigError` for files that are missing, too large or no text."""
    files = sorted(p for p in folder.glob("*") if p.suffix in {".cedar", ".cedarschema"})
    schemas = [p for p in files if p.suffix == ".cedarschema"]
    sources = [p for p in files if p.suffix == ".cedar"]
    if len(schemas) != 1 or not sources:
        raise ConfigError(
            "POLICY_FILES",
            f"{folder} must hold one *.cedarschema and at least one *.cedar, found {[p.name for p in files]}",
        )
    texts = {p: _read(p) for p in files}
    digest = hashlib.sha256()
    for path in files:
        for part in (path.name.encode(), texts[path].encode()):
            digest.update(len(part).to_bytes(8, "big") + part)
    return HouseRules(folder, {p: texts[p] for p in sources}, schemas[0], texts[schemas[0]], digest.digest())


def _read(path: Path) -> str:
    try:
        raw = path.read_bytes()
        text = raw.decode("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError("POLICY_FILE", f"{path}: {exc}") from exc
    if len(raw) > MAX_TEXT:
        raise ConfigError("POLICY_FILE", f"{path}: {len(raw)} bytes, limit {MAX_TEXT}")
    return text
