"""What the operator said of components: revoked, or admitted again.  Kept in a file of the authority's own.

- Only what the operator signed counts, and of one component only the highest number: an old admission played back
  admits nobody.
- While a component is revoked no certificate of it counts; admitted again, those issued since then.
- It is on disk before it has an effect, and said on the bus again and again, so that the loss of either loses nothing.
- A file that cannot be read, or holds what does not verify, is refused: nobody starts without knowing who is revoked.

The file is trusted to be there: who deletes it, and withholds the bus's history, brings a revoked component back.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from tallystick.runtime.durable import write_durably
from tallystick.schemas.errors import NOT_DECODED, BootOver, ConfigError, TallystickError, Unverified
from tallystick.schemas.trust import Revocation, TrustRoot, open_revocation


class Revocations:
    """The newest word on each component; `path` keeps them."""

    def __init__(self, path: Path, trust: TrustRoot) -> None:
        """Read what was kept.  Raises `ConfigError`."""
        self._path = path
        self._trust = trust
        self._newest: dict[str, tuple[Revocation, str]] = {}
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            kept = msgspec.json.decode(path.read_bytes(), type=list[str]) if path.exists() else []
            for note in kept:
                self._remember(open_revocation(note, trust), note)
        except (OSError, TallystickError, *NOT_DECODED) as exc:
            raise ConfigError("REVOCATIONS_FILE", f"{path}: {exc}: who is revoked is not known") from exc

    @property
    def notes(self) -> list[tuple[str, str]]:
        """(component, note) of each newest word."""
        return [(component, note) for component, (_, note) in sorted(self._newest.items())]

    def standing(self, component: str) -> Revocation | None:
        """The newest word on a component."""
        known = self._newest.get(component)
        return None if known is None else known[0]

    def take_up(self, note: str) -> None:
        """A note of the bus's history: the newest counts.  Raises `TallystickError` for none of the operator's."""
        said = open_revocation(note, self._trust)
        known = self.standing(said.component)
        if known is None or said.number > known.number:
            self._remember(said, note)
            self._write()

    def say(self, note: str) -> Revocation:
        """A new word of the operator's, on disk when this returns.  Raises `TallystickError`."""
        said = open_revocation(note, self._trust)
        known = self.standing(said.component)
        number = 0 if known is None else known.number
        if said.number != number + 1:
            raise Unverified("REVOCATION_NUMBER", f"{said.component}: number {said.number}, due is {number + 1}")
        before = dict(self._newest)
        self._remember(said, note)
        try:
            self._write()
        except OSError as exc:
            self._newest = before
            raise Unverified("REVOCATION_KEPT", f"cannot write {self._path}: {exc.strerror}") from exc
        return said

    def require_allowed(self, component: str, issued_at: int) -> None:
        """Raise `BootOver` for a certificate of `component` issued at `issued_at` (Unix ns) that does not count."""
        said = self.standing(component)
        if said is None or (not said.revoked and issued_at >= said.since):
            return
        what = "is revoked by the operator" if said.revoked else "shows a certificate from before it was revoked"
        raise BootOver(
            "COMPONENT_REVOKED", f"{component} {what} (number {said.number}): {said.reason}; `tallystick reinstate`"
        )

    def _remember(self, said: Revocation, note: str) -> None:
        self._newest[said.component] = (said, note)

    def _write(self) -> None:
        write_durably(self._path, msgspec.json.encode([note for _, note in self.notes]), 0o600)
