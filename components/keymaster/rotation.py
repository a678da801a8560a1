"""The rotation of one API key at a venue: a state machine whose every state is kept before anything is done in it.

    started → new_key → creating → created → bound → verified → switching → switched → revoking → revoked → dead → forgotten
    and from any of them before `revoking`:  back → withdrawn → deleted → gone → rolled_back
    of a stolen key:  revoking → revoked → dead → started → new_key → … → switched → dead → forgotten

- A state is kept, durably, before its act; every act can be done again.  So a crash loses nothing: who comes next reads
  the last state and goes on.  What was asked and not answered is asked about, never assumed.
- The new key carries the rotation's label.  A creation whose answer was lost is found in the venue's list by it.  It is
  asked for again only when the first request cannot be accepted any more (`SETTLE_NS`): never are two made.
- Until `revoking` the old key is left alone: custody signs with a key that the venue accepts, at every moment.
- Requests that the old key signed just before the switch are let through: it is deleted `OVERLAP_NS` later, and only
  after the new one was accepted once more.
- From `revoking` there is no way back: the old key may be gone.  What fails there is tried until it is done.
- A key is dead when the venue refuses, as an unknown key's, a request that is signed with it, and lists it no more.
  Only then is its half in the token destroyed: without it nobody could prove anything.
- A definite refusal is tried `MAX_TRIES` times, since a new key is not known everywhere at once; then the rotation goes
  back.  So it does when it has not reached the switch `PATIENCE_NS` after it began.
- A key that somebody else may use (`stolen`) is deleted first and proven dead; then the next one is made.  There is no way
  back, nothing that the old one signed is waited for, and what fails is tried until it is done.
- Going back after a switch, custody returns to the old key only where the venue accepts it.  Where it takes the new one
  alone, the rotation goes on; where it takes neither, it waits and says so.

`advance` does one act; whoever calls it waits as long as it says.  What it says in `Rotation.text` goes into the record.

The venue is not trusted to keep a key: an attacker who controls it can at most stop us from trading there.  Whoever
controls this process holds the master account's key, and can at most stop trading at that venue, or trade by a key of his
own that stands in the list; he withdraws nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, Protocol

import msgspec

from tallystick.schemas.bounds import SECOND
from tallystick.schemas.errors import NOT_DECODED, Malformed, TallystickError
from tallystick.venues import SKEW_NS, VALID_NS
from tallystick.venues.keys import fingerprint

# After this no request that was sent before can be accepted: the venue's clock may be behind ours.
SETTLE_NS: Final = VALID_NS + 2 * SKEW_NS
OVERLAP_NS: Final = SETTLE_NS + 2 * SECOND
RETRY_NS: Final = 2 * SECOND
PATIENCE_NS: Final = 900 * SECOND
MAX_TRIES: Final = 5
MAX_TEXT: Final = 400

Step = Literal[
    "started",
    "new_key",
    "creating",
    "created",
    "bound",
    "verified",
    "switching",
    "switched",
    "revoking",
    "revoked",
    "dead",
    "forgotten",
    "back",
    "withdrawn",
    "deleted",
    "gone",
    "rolled_back",
]
ENDS: Final = frozenset(("forgotten", "rolled_back"))
# Where the old key was not touched yet, and custody was not told of the new one.
_BEFORE_SWITCH: Final = frozenset(("started", "new_key", "creating", "created", "bound", "verified"))
_MAY_GO_BACK: Final = _BEFORE_SWITCH | {"switching", "switched"}


class Unclear(TallystickError):
    """It may have been done or not, or cannot be asked now: tried again later."""


class Refused(TallystickError):
    """It was not done, and the answer is definite."""


class KeyRef(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One key: `key_id` in the token, `public_key` (PEM), `api_key` at the venue."""

    key_id: str
    public_key: str = ""
    api_key: str = ""

    def __repr__(self) -> str:
        return f"KeyRef({self.key_id!r}, {fingerprint(self.api_key).hex()[:16]})"


class Rotation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that a rotation is; times in Unix ns.

    - `label`: what the new key is called at the venue.
    - `begun`, `since`: when the rotation and its step began; `tries`: how often the step was refused.
    - `settles`: until when a creation that was asked for may still happen.
    - `strays`: keys of the label that are deleted on the way back, to be proven dead.
    - `text`: why it is where it is, for people.
    - `stolen`: the old key is revoked before there is another one.
    """

    rotation: str
    venue: str
    component: str
    label: str
    old: KeyRef
    new: KeyRef
    begun: int
    since: int
    step: Step = "started"
    switched: bool = False
    tries: int = 0
    settles: int = 0
    strays: tuple[str, ...] = ()
    text: str = ""
    stolen: bool = False


def encode(state: Rotation) -> bytes:
    """A state as it is kept: one line of JSON, without its end."""
    return msgspec.json.encode(state)


def decode(line: bytes) -> Rotation:
    """A kept state.  Raises `Malformed`."""
    try:
        return msgspec.json.decode(line, type=Rotation)
    except NOT_DECODED as exc:
        raise Malformed("ROTATION_STATE", f"not the state of a rotation: {exc}") from exc


class Custody(Protocol):
    """Custody and its token.  Each call may be made again and then changes nothing; raises `Unclear` or `Refused`."""

    async def born(self, key_id: str) -> str:
        """Make the key pair `key_id` inside the token, or find it there; its public key in PEM."""

    async def switch(self, key: KeyRef) -> None:
        """Sign with `key` from now on; durable when it returns.  Every other key stays in the token, unused."""

    async def forget(self, key_id: str) -> None:
        """Destroy the key in the token."""


class Venue(Protocol):
    """The venue's side of one account.  Raises `Unclear` or `Refused`; what is `Refused` was not done."""

    async def create(self, label: str, key: KeyRef) -> str:
        """Make a key of this label for the public key; its id."""

    async def find(self, label: str) -> tuple[str, ...]:
        """The ids of all keys of this label: the whole list was read."""

    async def bind(self, api_key: str) -> None:
        """Bind the key to our addresses."""

    async def require_fit(self, key: KeyRef) -> None:
        """Return if the venue accepts a harmless request of the key's and says that it may do what its role needs.

        Raises `Refused` if the key is refused or unfit.
        """

    async def accepts(self, key: KeyRef) -> bool:
        """Whether the venue accepts a harmless request of the key's; False: it refuses it as a credential."""

    async def delete(self, api_key: str) -> None:
        """Delete the key; returns as well if there is none of this id."""

    async def is_dead(self, key: KeyRef) -> bool:
        """Whether a request of the key's is refused as an unknown key's, and the list has it no more."""


Keep = Callable[[Rotation], None]


def begin(rotation: str, venue: str, component: str, old: KeyRef, now: int) -> Rotation:
    """A rotation of `old`; `rotation` are 16 hex digits that no other has."""
    return Rotation(
        rotation=rotation,
        venue=venue,
        component=component,
        label=f"ts-{rotation}",
        old=old,
        new=KeyRef(key_id=f"api-{rotation}"),
        begun=now,
        since=now,
    )


def revoke_first(state: Rotation, now: int) -> Rotation | None:
    """The same rotation, its old key revoked first, where it has not come to the switch yet; None where it has."""
    if state.step not in _BEFORE_SWITCH:
        return None
    return msgspec.structs.replace(state, step="revoking", since=now, tries=0, text="stolen", stolen=True)


async def advance(
    state: Rotation, custody: Custody, venue: Venue, now: int, keep: Keep, waits: Callable[[str], None] = lambda _: None
) -> tuple[Rotation, int]:
    """Do the next act; the state that is kept then, and how many ns to wait before the next.

    `keep` makes a state durable before it returns; `waits` is told why an act is to be tried again.  What `keep` raises, and whatever is neither `Unclear` nor `Refused`, goes
    through: nothing is lost, the kept state says how to go on.
    """
    machine = _Machine(state, custody, venue, now, keep)
    if state.step in ENDS:
        return state, 0
    if state.step in _BEFORE_SWITCH and not state.stolen and now - state.begun > PATIENCE_NS:
        machine.to("back", text=f"not switched after {PATIENCE_NS // SECOND} s")
        return machine.state, 0
    try:
        wait = await machine.act()
    except Unclear as exc:
        waits(f"{exc.code}: {exc.text}"[:MAX_TEXT])
        return machine.state, RETRY_NS
    except Refused as exc:
        machine.refused(exc)
        wait = RETRY_NS
    return machine.state, wait


class _Machine:
    """One act on one state."""

    def __init__(self, state: Rotation, custody: Custody, venue: Venue, now: int, keep: Keep) -> None:
        self.state = state
        self._custody = custody
        self._venue = venue
        self._now = now
        self._keep = keep

    def to(self, step: Step, **changes: object) -> None:
        """Keep the next state."""
        fresh: dict[str, object] = {"step": step, "since": self._now, "tries": 0, "text": ""}
        # What is not kept did not happen: the state changes after that.
        state = msgspec.structs.replace(self.state, **(fresh | changes))
        self._keep(state)
        self.state = state

    def refused(self, exc: Refused) -> None:
        """Count a refusal; after too many of them go back, where there is a way back."""
        text, tries = f"{exc.code}: {exc.text}"[:MAX_TEXT], self.state.tries + 1
        if tries >= MAX_TRIES and self.state.step in _MAY_GO_BACK and not self.state.stolen:
            self.to("back", text=text)
        else:
            self.to(self.state.step, since=self.state.since, tries=tries, text=text)

    async def act(self) -> int:
        """Do what the step is about; how long to wait (ns) before the next act."""
        match self.state.step:
            case "started":
                public = await self._custody.born(self.state.new.key_id)
                self.to("new_key", new=msgspec.structs.replace(self.state.new, public_key=public))
            case "new_key" | "creating":
                return await self._create()
            case "created":
                await self._venue.bind(self.state.new.api_key)
                self.to("bound")
            case "bound":
                await self._venue.require_fit(self.state.new)
                self.to("verified")
            case "verified":
                # From here custody may have been told: going back has to tell it otherwise.
                self.to("switching", switched=True)
            case "switching":
                await self._custody.switch(self.state.new)
                self.to("switched")
            case "switched":
                return await self._overlap()
            case "revoking":
                await self._venue.delete(self.state.old.api_key)
                self.to("revoked")
            case "revoked":
                return await self._prove_old_dead()
            case "dead" if self.state.stolen and not self.state.switched:
                self.to("started")
            case "dead":
                await self._custody.forget(self.state.old.key_id)
                self.to("forgotten")
            case "back":
                await self._switch_back()
            case "withdrawn":
                return await self._delete_new()
            case "deleted":
                return await self._prove_new_dead()
            case "gone":
                await self._custody.forget(self.state.new.key_id)
                self.to("rolled_back", text=self.state.text)
            case _:
                pass
        return 0

    async def _create(self) -> int:
        state = self.state
        left = state.settles - self._now
        found = await self._venue.find(state.label)
        if found:
            self.to("created", new=msgspec.structs.replace(state.new, api_key=found[0]))
            return 0
        if left > 0:
            # An earlier request may still be accepted: a second one now could make a second key.
            return left
        self.to("creating", settles=self._now + SETTLE_NS, tries=state.tries, since=state.since)
        api_key = await self._venue.create(state.label, state.new)
        self.to("created", new=msgspec.structs.replace(state.new, api_key=api_key))
        return 0

    async def _overlap(self) -> int:
        left = self.state.since + OVERLAP_NS - self._now
        if left > 0 and not self.state.stolen:
            return left
        if not await self._venue.accepts(self.state.new):
            raise Refused("KEY_REFUSED", "the venue refuses the new key, which it had accepted")
        self.to("dead" if self.state.stolen else "revoking")
        return 0

    async def _prove_old_dead(self) -> int:
        state = self.state
        if not await self._venue.is_dead(state.old):
            self.to("revoking", text="the venue accepted the old key after it had been deleted: again")
            return RETRY_NS
        self.to("dead")
        return 0

    async def _switch_back(self) -> None:
        state = self.state
        if state.switched:
            if not await self._venue.accepts(state.old):
                if await self._venue.accepts(state.new):
                    self.to("switching", text="the venue refuses the old key and accepts the new one: going on")
                    return
                raise Refused("NO_KEY", "the venue refuses the old key as well: there is none to go back to")
            await self._custody.switch(state.old)
        self.to("withdrawn", text=state.text)

    async def _delete_new(self) -> int:
        state = self.state
        # A creation may still be accepted, and an order that the new key signed may be on its way.
        left = max(state.settles, state.since + OVERLAP_NS if state.switched else 0) - self._now
        if left > 0:
            return left
        known = {state.new.api_key} - {""}
        strays = tuple(sorted({*state.strays, *await self._venue.find(state.label), *known}))
        if strays != state.strays:
            self.to("withdrawn", since=state.since, strays=strays, text=state.text)
        for api_key in strays:
            await self._venue.delete(api_key)
        self.to("deleted", text=state.text)
        return 0

    async def _prove_new_dead(self) -> int:
        state = self.state
        strays = (msgspec.structs.replace(state.new, api_key=api_key) for api_key in state.strays)
        if not all([await self._venue.is_dead(key) for key in strays]):
            self.to("withdrawn", since=state.since, text=state.text)
            return RETRY_NS
        self.to("gone", text=state.text)
        return 0
