"""Where an archive lies, and the trust roots under which it verifies.

The archive brings its trust roots along; the operator root's key that vouches for them does not come from it.
The folder is not trusted: an attacker who controls it can at most keep the archive from being read.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import msgspec

from tallystick.record.files import ArchiveError, read_regular
from tallystick.record.manifest import MANIFEST, TRUST, names
from tallystick.record.report import Problem
from tallystick.schemas.errors import ConfigError, Malformed, TallystickError, Unverified
from tallystick.schemas.seal import Verifier
from tallystick.schemas.trust import open_trust_roots, public_key_bytes

_ROOT_NOTE = re.compile(r"root-(\d{1,6})\.note")
# Far above any trust root; `note` refuses what is longer.
MAX_NOTE_BYTES: Final = 4 << 20
MAX_ROOTS: Final = 10_000


class Place(msgspec.Struct, frozen=True):
    """Where an archive and the key to verify it are; `given`: the key was named, and does not lie beside the archive."""

    archive: Path
    root: Path
    given: bool = False


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
    return Place(archive, key, root is not None)


def pinned_key(place: Place) -> bytes:
    """The pinned operator root key.  Raises `ConfigError` (`TRUST_ROOT`) for a file that holds none."""
    try:
        return public_key_bytes(read_regular(place.root.parent, place.root.name, 4096).decode("ascii").strip())
    except (ArchiveError, Malformed, UnicodeDecodeError) as exc:
        raise ConfigError("TRUST_ROOT", f"{place.root} holds no operator root key: {exc}") from exc


def load_verifiers(place: Place) -> list[Verifier]:
    """A verifier for each version of the trust root, oldest first.

    Raises `ConfigError` for a pinned key that is none and where no trust root is, `Unverified` for trust roots that it
    does not vouch for.
    """
    verifiers, problems = judge_trust(place)
    wrong = [problem for problem in problems if problem.code != "TRUST_ROOT_MISSING"]
    for problem in wrong:
        raise Unverified(problem.code, f"{problem.file}: {problem.text}")
    if not verifiers:  # those of the deployment serve as well
        raise ConfigError("TRUST_ROOT_MISSING", f"no root-1.note is in {place.archive / TRUST}")
    return verifiers


def judge_trust(place: Place) -> tuple[list[Verifier], list[Problem]]:
    """A verifier for each version of the trust root up to the first that does not hold, and what is wrong with that.

    Where the archive has none, the deployment's serve, and that is wrong with it.  Raises `ConfigError` for a pinned key
    that is none.
    """
    pinned = pinned_key(place)
    verifiers, problems = _open_roots(place.archive, place, pinned)
    if verifiers or problems:
        return verifiers, problems
    missing = Problem("TRUST_ROOT_MISSING", f"no root-1.note is in {place.archive / TRUST}", file=TRUST)
    verifiers, problems = _open_roots(place.archive.parent, place, pinned)
    return verifiers, [missing, *problems]


def _open_roots(folder: Path, place: Place, pinned: bytes) -> tuple[list[Verifier], list[Problem]]:
    numbers = sorted(
        int(match.group(1)) for name in names(folder, TRUST) if (match := _ROOT_NOTE.fullmatch(Path(name).name))
    )
    notes: list[str] = []
    verifiers: list[Verifier] = []
    for expected, number in enumerate(numbers[:MAX_ROOTS], start=1):
        file = f"{TRUST}/root-{number}.note"
        try:
            if number != expected:
                raise Unverified("TRUST_ROOT_NUMBER", f"follows version {expected - 1}")
            notes.append(read_regular(folder, file, MAX_NOTE_BYTES).decode("utf-8"))
            verifiers = [Verifier(root) for root in open_trust_roots(notes, pinned)]
        except UnicodeDecodeError as exc:
            return verifiers, [Problem("TRUST_ROOT", f"no text: {exc}", file=file)]
        except TallystickError as exc:
            return verifiers, [Problem(exc.code, f"{exc.text}; the pinned key is {place.root}", file=file)]
    return verifiers, []
