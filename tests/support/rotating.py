"""A venue and a custody in memory, for the rotation of a key: every call can fail in each way that a real one can.

What fails is told by `Faults`: before or after it was done, later than answered, refused, or by the death of the process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from tallystick.components.keymaster.rotation import KeyRef, Refused, Rotation, Unclear, decode, encode
from tallystick.venues import SKEW_NS, VALID_NS

FAULTS = ("fine", "lost_before", "lost_after", "late", "refused", "dead_before", "dead_after", "dead_late")


OLD = KeyRef(key_id="api-old", public_key="old", api_key="OLD")


class Crashed(BaseException):
    """The process is gone, here."""


@dataclass
class World:
    """Venue, custody, token and disk; `faults` are what befalls the next calls, one each, and then nothing does."""

    faults: Iterable[str] = ()
    now: int = 1_000_000_000_000
    keys: dict[str, str] = field(default_factory=dict)  # API key -> label
    bound: set[str] = field(default_factory=set)
    usable: dict[str, str] = field(default_factory=dict)  # API key -> key id in the token that signs for it
    token: set[str] = field(default_factory=lambda: {"api-old"})
    signs_with: KeyRef = OLD
    disk: list[bytes] = field(default_factory=list)
    unfit: bool = False
    lost: set[str] = field(default_factory=set)  # what the venue itself lost
    lingers_ns: int = 0  # how long a deleted key is still accepted
    halted: bool = False  # no order is signed: the key is stolen
    made: int = 0
    calls: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.keys["OLD"] = "earlier"
        self.usable["OLD"] = "api-old"
        self._faults = iter(self.faults)
        self._late: list[tuple[int, Callable[[], object]]] = []
        self._signed: dict[str, int] = {}
        self._lingering: dict[str, int] = {}  # API key -> until when

    # What must be so at every moment.

    def check(self) -> None:
        """Custody signs an order, with a key that it holds and that the venue accepts."""
        key = self.signs_with
        assert key.key_id in self.token, f"custody signs with {key}, which its token has not"
        if self.halted:
            return
        if key.api_key not in self.lost:
            assert key.api_key in self.keys, f"custody signs with {key}, which the venue refuses"
        self._signed[key.api_key] = self.now

    def pass_time(self, ns: int) -> None:
        """Time goes by, in small steps; what is late comes."""
        end = self.now + ns
        while self.now < end:
            self.now = min(end, self.now + VALID_NS // 2)
            for due, do in [each for each in self._late if each[0] <= self.now]:
                self._late.remove((due, do))
                do()
            self.check()

    # How calls fail.

    def _call(self, name: str, do: Callable[[], object], *, write: bool = True, refusable: bool = False) -> object:
        self.check()
        self.calls.append(name)
        fault = next(self._faults, "fine")
        if fault == "dead_before":
            raise Crashed
        if fault == "refused" and refusable:
            raise Refused("TEST", name)
        if fault == "lost_before" or (fault in {"late", "lost_after"} and not write):
            raise Unclear("TEST", name)
        if fault in {"late", "dead_late"}:
            if write:
                # Within its validity by the venue's clock, which may be behind.
                self._late.append((self.now + VALID_NS + SKEW_NS, do))
            if fault == "dead_late":
                raise Crashed
            raise Unclear("TEST", name)
        result = do()
        self.check()
        if fault == "dead_after":
            raise Crashed
        if fault == "lost_after":
            raise Unclear("TEST", name)
        return result

    def keep(self, state: Rotation) -> None:
        """The disk: written, or not, or written and then the process dies."""
        self.check()
        fault = next(self._faults, "fine")
        if fault == "dead_before":
            raise Crashed
        self.disk.append(encode(state))
        if fault == "dead_after":
            raise Crashed

    def kept(self) -> Rotation:
        """What the next process reads."""
        return decode(self.disk[-1])

    def befall(self, faults: Iterable[str]) -> None:
        """These come next."""
        self._faults = iter(faults)

    def lose(self, api_key: str) -> None:
        """The venue loses a key of ours, or somebody else deletes it."""
        self.keys.pop(api_key, None)
        self.lost.add(api_key)

    # Custody.

    async def born(self, key_id: str) -> str:
        self._call("born", lambda: self.token.add(key_id), refusable=True)
        return f"public of {key_id}"

    async def switch(self, key: KeyRef) -> None:
        def do() -> None:
            self.signs_with = key

        revoked = any(decode(line).step == "revoking" or decode(line).stolen for line in self.disk)
        assert not revoked or key.key_id != OLD.key_id, "back to a key that may be deleted already"
        # The token is here: what custody did not answer it has done or not, but does not do later.
        self._call("switch", do, refusable=True)

    async def forget(self, key_id: str) -> None:
        assert self.signs_with.key_id != key_id, "the key that signs is destroyed"
        alive = [k for k, held in self.usable.items() if held == key_id and self._alive(k)]
        assert not alive, "a key is destroyed that the venue still takes: nobody can prove any more that it is dead"
        self._call("forget", lambda: self.token.discard(key_id))

    # The venue.

    async def create(self, label: str, key: KeyRef) -> str:
        assert not self.halted or not self._alive("OLD"), "another key is asked for before the stolen one is dead"

        def do() -> str:
            assert label not in self.keys.values(), "two keys of one label were asked for"
            self.made += 1
            api_key = f"NEW{self.made}"
            self.keys[api_key] = label
            self.usable[api_key] = key.key_id
            return api_key

        return str(self._call("create", do, refusable=True))

    async def find(self, label: str) -> tuple[str, ...]:
        found: list[str] = []
        self._call("find", lambda: found.extend(k for k, held in self.keys.items() if held == label), write=False)
        return tuple(found)

    async def bind(self, api_key: str) -> None:
        self._call("bind", lambda: self.bound.add(api_key), refusable=True)

    async def require_fit(self, key: KeyRef) -> None:
        self._call("require_fit", lambda: None, write=False, refusable=True)
        if self.unfit or key.api_key not in self.bound or not self._accepts(key):
            raise Refused("KEY_TOO_BROAD", "unfit")

    async def accepts(self, key: KeyRef) -> bool:
        self._call("accepts", lambda: None, write=False)
        return self._accepts(key)

    async def delete(self, api_key: str) -> None:
        def do() -> None:
            last = self._signed.get(api_key)
            through = last is None or api_key not in self.keys or self.now - last >= VALID_NS
            assert self.halted or through, "an order was on its way"
            if self.keys.pop(api_key, None) is not None:
                self._lingering[api_key] = self.now + self.lingers_ns

        assert self.halted or api_key != self.signs_with.api_key, "the key that signs is deleted"
        self._call("delete", do, refusable=True)

    async def is_dead(self, key: KeyRef) -> bool:
        self._call("is_dead", lambda: None, write=False)
        return not self._alive(key.api_key)

    def _alive(self, api_key: str) -> bool:
        return api_key in self.keys or self._lingering.get(api_key, 0) > self.now

    def _accepts(self, key: KeyRef) -> bool:
        return key.api_key in self.keys and self.usable.get(key.api_key) == key.key_id and key.key_id in self.token
