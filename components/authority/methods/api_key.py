"""Keys that each open one session and are replaced by it: what market data shows besides its certificate.

- The component draws the next key itself, keeps it, and names its hash when it shows the present one; nothing secret
  comes back, and the authority knows no key that was not shown yet.
- What is kept here are hashes.  That a key was used is on the disk before its session is made.
- A key shown again with the same next hash is the same holder, whose answer was lost, as long as nothing has followed.
- A used key with another next hash is a second holder.  Who of the two is the thief cannot be known: from then on no key
  of the component counts, over restarts, until the operator grants a new one (`grants`).
- The first key is the trust root's, or that of a later grant.

The file is trusted to be there and to be the newest: who deletes it or puts an older one back brings used keys back,
for whoever has the certificate as well.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

import msgspec

from tallystick.runtime.durable import write_durably
from tallystick.schemas.enrolment import API_KEY_BYTES, ApiKeyEvidence, hex_bytes
from tallystick.schemas.errors import NOT_DECODED, ConfigError, Unverified
from tallystick.schemas.grants import KeyGrant
from tallystick.schemas.methods import ApiKey

# A day and more of sessions of a quarter of an hour.
MAX_USED: Final = 256


class _Kept(msgspec.Struct, forbid_unknown_fields=True):
    """Hashes, hex: the trust root's `first`, what is `due` next, what was `used`, the newest last."""

    first: str
    due: str
    used: list[str] = []
    granted: int = 0
    stolen: bool = False


class ApiKeys:
    """The keys of one component; `path` keeps their hashes."""

    def __init__(self, component: str, method: ApiKey, path: Path) -> None:
        """Read what was kept.  Raises `ConfigError`."""
        self._component = component
        self._path = path
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            kept = msgspec.json.decode(path.read_bytes(), type=_Kept) if path.exists() else None
        except (OSError, *NOT_DECODED) as exc:
            raise ConfigError("API_KEYS_FILE", f"{path}: {exc}: which keys were used is not known") from exc
        if kept is None or kept.first != method.first:
            kept = _Kept(method.first, method.first)
        self._kept = kept

    def require(self, evidence: ApiKeyEvidence) -> None:
        """Use a key up.  Raises `Malformed` or `Unverified` for one that opens nothing."""
        key = hex_bytes(evidence.key, API_KEY_BYTES, "key")
        follows = hex_bytes(evidence.next, 32, "next").hex()
        shown = hashlib.sha256(key).hexdigest()
        kept = self._kept
        if kept.stolen:
            raise Unverified("API_KEY_STOLEN", self._advice())
        if shown == kept.due:
            if follows == shown or follows in kept.used:
                raise Unverified(
                    "API_KEY_UNKNOWN", f"{self._component} names a key as the next one that was used before"
                )
            self._write(_Kept(kept.first, follows, [*kept.used, shown][-MAX_USED:], kept.granted))
            return
        if shown in kept.used:
            if shown == kept.used[-1] and follows == kept.due:
                # It was used, and the answer was lost: the same holder, since nobody else knows what follows.
                return
            self._write(_Kept(kept.first, kept.due, kept.used, kept.granted, stolen=True))
            raise Unverified("API_KEY_STOLEN", self._advice())
        raise Unverified(
            "API_KEY_UNKNOWN", f"{self._component} shows a key that is not due; {len(kept.used)} were used"
        )

    def grant(self, grant: KeyGrant) -> None:
        """Begin anew, as the operator signed.  Raises `Unverified` for a grant that is not the newest."""
        if grant.issued <= self._kept.granted or grant.first in (*self._kept.used, self._kept.due):
            raise Unverified(
                "KEY_GRANT", f"{self._component}: a grant of {grant.issued}, known is {self._kept.granted}"
            )
        self._write(_Kept(self._kept.first, grant.first, [], grant.issued))

    def _advice(self) -> str:
        return (
            f"a key of {self._component} was shown by two holders, so no key of it counts: `tallystick revoke "
            f"{self._component}`, find out who copied it, then `tallystick reinstate`"
        )

    def _write(self, kept: _Kept) -> None:
        try:
            write_durably(self._path, msgspec.json.encode(kept), 0o600)
        except OSError as exc:
            raise Unverified("API_KEYS_KEPT", f"cannot write {self._path}: {exc.strerror}") from exc
        self._kept = kept
