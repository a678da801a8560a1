"""`tallystick compromise DIR authority`: the answer to who has the one component that hands out sessions and hears revocations.

Nobody would hear that it is revoked.  So, after all is halted and cancelled,

- *revoked*: everything is stopped: no session outlives the list of sessions, which nobody says any more;
- *rotated*: an issuing CA of a new key, new certificates for everybody, the next trust root; new PINs for the tokens that
  it opens;
- *proven*: the old certificate does not verify under the issuing CA that everybody trusts now.

The bus is gone by then: what is done later is not published, and stands in the evidence, signed.  `tallystick up` starts
again.  Its keys in the tokens stay: whoever may have copied a SoftHSM token's files with its PIN has them (docs/incidents.md).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

from cryptography.exceptions import InvalidSignature

from tallystick.cli.compromise import Answer
from tallystick.cli.status import processes
from tallystick.infra.lockfile import ask_owner_to_end, end_owner
from tallystick.runtime.deployment import pins
from tallystick.runtime.deployment.admit import admit
from tallystick.runtime.deployment.folder import pin_name
from tallystick.runtime.deployment.owners import end_orphans, supervisor_file
from tallystick.runtime.keys.identity import load_certificate
from tallystick.schemas.errors import ConfigError
from tallystick.schemas.incidents import StepName

AUTHORITY: Final = "authority"
# Who does not end by then is ended.
STOP_S: Final = 6.0


class AuthorityAnswer(Answer):
    """Carries out and records the incident; see `Answer`."""

    def _require_answerable(self) -> None:
        self._deployment.bus().component(AUTHORITY)

    def _signed_steps(self) -> Iterator[tuple[StepName, Callable[[], Awaitable[str]]]]:
        yield "revoked", self._stop
        yield "rotated", self._renew
        yield "proven", self._refused

    async def _stop(self) -> str:
        await self._said()
        ended: list[str] = []
        await asyncio.to_thread(self._end_up, ended.append)
        left = processes(self._deployment)
        if left:
            names = ", ".join(f"{name} (pid {number})" for name, number in left)
            raise ConfigError("COMPROMISE_RUNNING", f"{names} run alone: end them, and call this again")
        return f"everything is stopped{''.join(f'; {line}' for line in ended)}: nobody has a session any more"

    def _end_up(self, report: Callable[[str], None]) -> None:
        up = supervisor_file(self._deployment)
        ask_owner_to_end(up)
        end_owner(up, STOP_S)
        end_orphans(self._deployment, report)

    async def _renew(self) -> str:
        self._require_operator()
        deployment, keystore = self._deployment, self._keystore
        admitted = await asyncio.to_thread(admit, deployment, keystore, self._clock(), lambda _: None, new_ca=True)
        opened = deployment.secret_names(AUTHORITY)
        labels = [label for label in deployment.token_labels if pin_name(label) in opened]
        for label in labels:
            await asyncio.to_thread(pins.renew, deployment, keystore, label, lambda _: None)
        return (
            f"an issuing CA of a new key and certificates for everybody, trust root {admitted.number}; new PINs of tokens "
            f"{', '.join(labels)}; start again with `tallystick up {deployment.directory}`"
        )

    async def _refused(self) -> str:
        old = self._old
        if old is None:
            raise ConfigError("COMPROMISE_UNPROVEN", f"there is no old certificate to look at: {self._no_old}")
        now = load_certificate(self._deployment.issuing_ca)
        try:
            old.certificate.verify_directly_issued_by(now)
        except (InvalidSignature, ValueError):
            return (
                f"the old certificate {old.fingerprint.hex()[:16]} is not of the issuing CA that everybody trusts now"
            )
        raise ConfigError("COMPROMISE_UNPROVEN", "the old certificate still verifies: do not start again")
