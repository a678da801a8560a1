"""Where an archive lies, and the trust roots under which it verifies.

The archive brings its trust roots along; the operator root's key that vouches for them does not come from it.
The folder is not trusted: an attacker who controls it can at most keep the archive from being read.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from tallystick.record.manifest import MANIFEST, TRUST
from tallystick.schemas.errors import ConfigError
from tallystick.schemas.seal import Verifier
from tallystick.schemas.trust import open_trust_roots, public_key_bytes


class Place(msgspec.Struct, frozen=True):
    """Where an archive and the key to verify it are."""

    archive: Path
    root: Path


def locate_archive(directory: Path) -> Path:
    """The archive in `directory`, a deployment or an archive itself.  Raises `ConfigError`."""
    if (directory / MANIFEST).is_file():
        return directory
    if (directory / "archive").is_dir():
        return directory / "archive"
    raise ConfigError("ARCHIVE_MISSING", f"{directory} is neither a deployment nor an archive (no {MANIFEST})")


def locate(directory: Path, root: Path | None = None) -> Place:
    """The archive in `directory` and the pinned root, `root` or the deployment's.  Raises `ConfigError`."""
    archive = locate_archive(directory)
    key = root if root is not None else archive.parent / TRUST / "operator-root.pub"
    if not key.is_file():
        raise ConfigError("ROOT_MISSING", f"{key} is not there: give the operator root's public key with --root FILE")
    return Place(archive, key)


def load_verifiers(place: Place) -> list[Verifier]:
    """A verifier for each version of the trust root, oldest first.

    Raises `ConfigError` for files that cannot be read, `Unverified` or `Malformed` for a trust root that
    the pinned key does not vouch for.
    """
    try:
        pinned = public_key_bytes(place.root.read_text("ascii").strip())
        folder = place.archive / TRUST
        if not any(folder.glob("root-*.note")):
            folder = place.archive.parent / TRUST
        found = sorted(folder.glob("root-*.note"), key=lambda p: (len(p.name), p.name))
        notes = [path.read_text("utf-8") for path in found]
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError("TRUST_ROOT", f"{place.root} or {place.archive / TRUST}: {exc}") from exc
    if not notes:
        raise ConfigError("TRUST_ROOT_MISSING", f"no root-*.note in {place.archive / TRUST}")
    return [Verifier(root) for root in open_trust_roots(notes, pinned)]
