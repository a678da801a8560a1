"""`tallystick compromise DIR TOKEN/ID`: the answer to an API key of the venue's that somebody else may use (R33).

- *halted*, *cancelled*: as for a component, at once and without a key or a file; of the key that only reads: nothing.
- *revoked*: the keymaster deletes the key at the venue, by the operator's signed order, before there is another one.
- *proven*: the venue refuses what the old key signs, and lists it no more (the record: `control.rotation/1`, `dead`).
- *rotated*: another key is born in the token, looked at and used; the old half is destroyed.
- *cancelled* once more, by the new key: what the thief placed until his was deleted.

What the keymaster says on its board is for the steps' texts; what counts is on the record under its signature.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

from tallystick.cli import breaker, guided
from tallystick.cli.compromise import POLL_S, Answer
from tallystick.cli.status import processes
from tallystick.components.keymaster.main import HOLDERS, revoked
from tallystick.infra.nats.topology import KEYMASTER
from tallystick.runtime.deployment import board
from tallystick.schemas.control import RotateRequest
from tallystick.schemas.errors import ConfigError, TallystickError
from tallystick.schemas.incidents import StepName
from tallystick.schemas.rotation_orders import RotationOrder

# By then it has ended ten times where it goes well.
WAIT_S: Final = 20.0


def is_key(target: str) -> bool:
    """Whether a target names a key, `TOKEN/ID`, and no component."""
    return "/" in target


class KeyAnswer(Answer):
    """Carries out and records one incident of a key; see `Answer`."""

    # The key that the vault names, and why that is not known: the keymaster has the last word.
    _in_use = ""
    _unknown = ""

    def _require_answerable(self) -> None:
        if self._token not in HOLDERS or not self._key_id:
            raise ConfigError(
                "COMPROMISE_KEY",
                f"{self._target[:96]!r}: this answers for the keys of the venue's, "
                f"{' and '.join(f'{name}/ID' for name in HOLDERS)} (`tallystick keys list`). The keymaster's is deleted on "
                "the venue's page; for what proves a component `tallystick compromise COMPONENT`",
            )

    @property
    def _token(self) -> str:
        return self._target.partition("/")[0]

    @property
    def _key_id(self) -> str:
        return self._target.partition("/")[2]

    def _scope(self) -> str:
        return "all" if HOLDERS[self._token] == "trade" else ""

    def _open_old(self) -> None:
        try:
            self._in_use = guided.Hand(self._deployment, self._keystore, self._token, lambda _: "").current().key_id
        except TallystickError as exc:
            self._unknown = str(exc)

    def _signed_steps(self) -> Iterator[tuple[StepName, Callable[[], Awaitable[str]]]]:
        yield "revoked", self._revoke
        yield "proven", self._prove
        yield "rotated", self._rotate
        if scope := self._scope():
            yield "cancelled", lambda: self._cancel(scope)

    async def _revoke(self) -> str:
        if self._in_use not in {"", self._key_id}:
            raise ConfigError(
                "COMPROMISE_KEY",
                f"{self._token} signs with {self._in_use!r}, and not with {self._key_id!r}: an earlier key of the venue's "
                "was proven dead when it was changed",
            )
        if KEYMASTER not in dict(processes(self._deployment)):
            raise ConfigError(
                "KEYMASTER_AWAY",
                "there is no keymaster that could delete the key: delete it on the venue's page now, then "
                f"`tallystick rotate {self._deployment.directory} {self._token} --stolen`",
            )
        order = RotationOrder(
            deployment=self._deployment.name, component=self._token, act="revoke", at=self._clock(), key=self._key_id
        )
        note = await asyncio.to_thread(self._require_operator().sign, order)
        await breaker.demand(self._deployment.run, RotateRequest(note=note))
        rotation = await self._reached(lambda step: step != "revoking")
        return f"the venue deleted the key {self._target} (rotation {rotation})"

    async def _prove(self) -> str:
        rotation = await self._reached(lambda step: step not in {"revoking", "revoked"})
        return f"the venue refuses what {self._target} signs, and lists it no more (rotation {rotation})"

    async def _rotate(self) -> str:
        rotation = await self._reached(lambda step: step == "forgotten")
        return f"{self._token} signs with a new key, api-{rotation}; the old one is destroyed in its token"

    async def _reached(self, there: Callable[[str], bool]) -> str:
        """Wait until the revocation of our key is at a step (`rotation.Step`) that is `there`; its rotation's id.

        Raises `ConfigError`.
        """
        ends = time.monotonic() + WAIT_S
        while True:
            said = board.read(self._deployment, KEYMASTER)
            rotation, _, rest = said.get(self._token, "").partition(" ")
            step, _, text = rest.partition(" ")
            ours = said.get(revoked(self._token)) == self._key_id
            if ours and there(step):
                return rotation
            if time.monotonic() > ends:
                where = f"it is at {step}{f' ({text})' if text else ''}; the keymaster goes on by itself"
                never = f"it has not begun{f' ({self._unknown})' if self._unknown else ''}; call this again"
                raise ConfigError(
                    "ROTATION_WAITS",
                    f"not within {WAIT_S:.0f} s: {where if ours else never}: `tallystick status`. "
                    "Where the venue still takes the key, delete it on its page",
                )
            await asyncio.sleep(POLL_S)
