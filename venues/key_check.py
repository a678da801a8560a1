"""Whether a component's own API key is fit, by the venue's word: at start, every hour, and before another one is used.

- The component asks itself, with the key in question, over a connection of its own: nobody hands it the answer.
- A key that can withdraw, is bound to no address or can more than its role needs is refused (`venues.keys.require_fit`), with
  the setting to change.  While it is, and before it was ever asked about, `require` raises: what trades, stops.
- An operator's signed exception (`schemas.key_exceptions`), a file of `EXCEPTIONS`, passes over the defects that it names;
  each that does is stated on `control.config.<component>`.
- Where the venue does not answer, what it said last holds for `HOLDS_NS`, and no longer than the exceptions that it needs.

The venue is believed about its own keys; the files are not trusted: without the operator's signature they are nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol

from tallystick.runtime.bus.post import get
from tallystick.runtime.deployment.folder import Deployment
from tallystick.runtime.deployment.service import ServiceContext
from tallystick.runtime.durable import read_regular
from tallystick.schemas.bounds import SECOND
from tallystick.schemas.errors import ConfigError, LeaseOver, Malformed, Unreachable, Unverified
from tallystick.schemas.key_exceptions import KeyException, open_key_exception
from tallystick.schemas.nats_jwt import Signer
from tallystick.schemas.security import ConfigChanged
from tallystick.schemas.subjects import subject
from tallystick.venues import Adapter, NoAnswer, Rejected
from tallystick.venues.keys import KeyUnfit, Role, require_fit

CHECK_NS: Final = 3_600 * SECOND
HOLDS_NS: Final = 2 * CHECK_NS
# One that is unfit is asked about again soon: somebody may be correcting it.
RETRY_S: Final = 10.0
AWAY_S: Final = 0.5
ANSWER_S: Final = 3.0
MAX_ANSWER: Final = 65_536
MAX_NOTE: Final = 65_536
# Below the deployment's folder `trust`, which everybody reads.
EXCEPTIONS: Final = "key-exceptions"


class Unasked(Unverified):
    """The venue has not said what a key may do."""


class Keyed(Protocol):
    """Who says which key is in use (`key_holder.KeyHolder`)."""

    @property
    def api_key(self) -> str:
        """Its id at the venue."""

    def signer(self) -> Signer:
        """What signs with it.  Raises `ConfigError`."""


class KeyCheck:
    """The check of `ctx.component`'s key, which is for `role`; `tls` is towards the venue at `host`."""

    def __init__(self, ctx: ServiceContext, adapter: Adapter, host: str, role: Role, tls: ssl.SSLContext) -> None:
        self._ctx = ctx
        self._adapter = adapter
        self._host = host
        self._role = role
        self._tls = tls
        self._holds = 0
        self._why = "the venue has not been asked yet"
        self._told = ""
        self._stated: set[bytes] = set()
        self._asked = asyncio.Event()

    def require(self, now: int) -> None:
        """Raise `KEY_UNFIT` unless the key was found fit, not too long before `now` (Unix ns)."""
        if now >= self._holds:
            raise Unverified("KEY_UNFIT", f"nothing is done with the venue's key: {self._why}")

    def live(self, now: int) -> bool:
        """Whether `require` passes."""
        return now < self._holds

    async def asked(self, seconds: float) -> None:
        """Wait until the venue has said something, for so long at most."""
        try:
            await asyncio.wait_for(self._asked.wait(), seconds)
        except TimeoutError:
            self._ctx.log.warning("key not checked yet", why=self._why)

    async def run(self, key: Keyed) -> None:
        """Keep asking about the key in use, for ever."""
        while True:
            try:
                holds = await self.require_fit(key.api_key, key.signer())
            except (Unasked, ConfigError) as exc:
                # Also where the token does not answer: cancels go on, whatever becomes of the key.
                self._why = f"{exc.code}: {exc.text}"
                await asyncio.sleep(AWAY_S)
                continue
            except Unverified as exc:
                # Each defect is named in the text.
                self._holds, self._why = 0, exc.text if isinstance(exc, KeyUnfit) else f"{exc.code}: {exc.text}"
                self._asked.set()
                self._tell(exc)
                await asyncio.sleep(RETRY_S)
                continue
            self._holds, self._told = holds, ""
            self._asked.set()
            await asyncio.sleep(min(CHECK_NS, holds - self._ctx.clock()) / SECOND)

    async def require_fit(self, api_key: str, signer: Signer) -> int:
        """Ask about this key; until when (Unix ns) the answer holds.

        Raises `KeyUnfit`; `Unasked` without an answer; `Unverified` where the key is refused.
        """
        request = await asyncio.to_thread(self._adapter.rights_request, self._host, api_key, signer, self._ctx.clock)
        try:
            status, body = await get(request.url, request.headers, self._tls, timeout_s=ANSWER_S, limit=MAX_ANSWER)
            rights = self._adapter.rights_answer(status, body)
        except (Unreachable, Malformed) as exc:
            raise Unasked(exc.code, exc.text) from exc
        if isinstance(rights, Rejected) and rights.about == "credential":
            raise Unverified("VENUE_CREDENTIAL", f"the venue refuses the key: {rights.code} {rights.text}")
        if isinstance(rights, NoAnswer | Rejected):
            raise Unasked(rights.code, rights.text)
        now = self._ctx.clock()
        holds = now + HOLDS_NS
        try:
            require_fit(rights, self._role, now=now)
        except KeyUnfit as exc:
            found = dict(self._exceptions(now))
            require_fit(rights, self._role, now=now, exceptions=found.values())
            names = {defect.name for defect in exc.defects}
            for digest, exception in found.items():
                if names & set(exception.defects):
                    holds = min(holds, exception.until)
                    if digest not in self._stated:
                        self._stated.add(digest)
                        self._state(digest, exception)
        return holds

    def _exceptions(self, now: int) -> Iterator[tuple[bytes, KeyException]]:
        """Those that hold for our key, by the SHA-256 of their notes."""
        venue = self._ctx.deployment.config.venue.name
        for path in notes(self._ctx.deployment):
            try:
                note = read_regular(path, MAX_NOTE)
                exception = open_key_exception(note.decode("utf-8", "replace"), self._ctx.trust, now)
            except LeaseOver:
                continue
            except (OSError, Malformed, Unverified) as exc:
                self._ctx.log.warning("key exception refused", file=path.name, error=str(exc))
                continue
            if (exception.venue, exception.component) == (venue, self._ctx.component):
                yield hashlib.sha256(note).digest(), exception

    def _state(self, digest: bytes, exception: KeyException) -> None:
        text = f"{', '.join(exception.defects)} until {exception.until}: {exception.reason}"
        said = self._ctx.new(ConfigChanged, name="key-exception", digest=digest, text=text)
        self._ctx.publish(subject("control.config", component=self._ctx.component), said)

    def _tell(self, exc: Unverified) -> None:
        if str(exc) != self._told:
            self._told = str(exc)
            self._ctx.notice(exc.code, exc.text)


def notes(deployment: Deployment) -> list[Path]:
    """The files of exceptions, whoever they are for."""
    return sorted((deployment.trust / EXCEPTIONS).glob("*.note"))
