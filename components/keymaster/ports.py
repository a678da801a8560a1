"""What a rotation acts on (`rotation.Custody`, `rotation.Venue`): a component's token by the bus, the venue by its API.

- A component is asked in a sealed event and answers in one, under the id of the question; what is not answered within
  `ANSWER_S` is `Unclear`, and asked again.
- Which key a component is to use is written to the vault first, then it is told to look there.
- The venue is asked with the master account's key, and about a key with a question that this very key signed.

What the components answer is believed about their own tokens alone; what a key may do, and whether it is dead, the venue
says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Literal, Protocol, TypeVar

import msgspec

from tallystick.components.keymaster.rotation import KeyRef, Refused, Unclear
from tallystick.runtime.deployment.folder import api_key_name, key_id_name
from tallystick.runtime.deployment.service import ServiceContext
from tallystick.runtime.keys.keystore import Secret
from tallystick.runtime.vault.client import VaultAway, VaultRefused
from tallystick.schemas.errors import Malformed
from tallystick.schemas.security import KeyAnswered, KeyAsked
from tallystick.schemas.signing import Signed
from tallystick.schemas.subjects import subject
from tallystick.venues import Adapter, NoAnswer, Rejected, SignedRequest
from tallystick.venues.client import Lost, Unsent, VenueClient
from tallystick.venues.key_holder import UNASKED
from tallystick.venues.keys import (
    KeyAdmin,
    KeyRights,
    KeyUnfit,
    Listed,
    NewKey,
    Role,
    fingerprint,
    is_unknown,
    require_fit,
)

ANSWER_S: Final = 5.0
# Far more than a sub-account can have.
MAX_PAGES: Final = 20

Op = Literal["current", "born", "probe", "switch", "forget"]


T = TypeVar("T")


def _plain(answer: T | Rejected | NoAnswer) -> T:
    """The answer itself.  Raises `Unclear` or `Refused`."""
    # A clock that differs is about neither the key nor the request.
    if isinstance(answer, NoAnswer) or (isinstance(answer, Rejected) and answer.about == "clock"):
        raise Unclear(answer.code, answer.text)
    if isinstance(answer, Rejected):
        raise Refused(answer.code, answer.text)
    return answer


class Probe(Protocol):
    """Whoever has keys sign the question about themselves."""

    async def probe(self, key_id: str) -> str:
        """The signed query.  Raises `Unclear` or `Refused`."""


class Holder:
    """`component`, custody or portfolio, with its token: `rotation.Custody`."""

    def __init__(self, ctx: ServiceContext, component: str) -> None:
        self._ctx = ctx
        self._component = component
        self._waiting: dict[bytes, asyncio.Future[KeyAnswered]] = {}
        self.rotation = ""

    def on_answer(self, answer: KeyAnswered) -> None:
        """An answer of the component's, as it was sealed."""
        waiting = self._waiting.get(answer.asked)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)

    async def ask(self, op: Op, key_id: str) -> str:
        """The component's answer.  Raises `Unclear` or `Refused`."""
        asked = self._ctx.new(KeyAsked, rotation=self.rotation, holder=self._component, op=op, key_id=key_id)
        waiting: asyncio.Future[KeyAnswered] = asyncio.get_running_loop().create_future()
        self._waiting[asked.id] = waiting
        try:
            self._ctx.publish(subject("control.key", component=self._ctx.component), asked)
            answer = await asyncio.wait_for(waiting, ANSWER_S)
        except TimeoutError:
            raise Unclear("KEY_UNANSWERED", f"{self._component} did not answer {op} in {ANSWER_S:.0f} s") from None
        finally:
            del self._waiting[asked.id]
        if not answer.code:
            return answer.result
        # What is away comes back; everything else is its last word.
        later = answer.code.startswith("VAULT_") or answer.code in {UNASKED, "HSM_HANGS", "HSM_TURN"}
        kind = Unclear if later else Refused
        raise kind(answer.code, f"{self._component}: {answer.text}")

    async def current(self) -> tuple[str, str]:
        """The key in use: its id in the token, and the SHA-256 (hex) of its id at the venue."""
        key_id, _, digest = (await self.ask("current", "venue")).partition(" ")
        return key_id, digest

    async def born(self, key_id: str) -> str:
        """See `rotation.Custody`."""
        return await self.ask("born", key_id)

    async def probe(self, key_id: str) -> str:
        """The question of a key about itself, signed."""
        return await self.ask("probe", key_id)

    async def switch(self, key: KeyRef) -> None:
        """See `rotation.Custody`: durable in the vault first, then in use."""
        own = self._component
        names = {api_key_name(own): Secret(key.api_key), key_id_name(own): Secret(key.key_id)}
        try:
            await self._ctx.leased.replace(own, names)
        except (VaultAway, VaultRefused) as exc:
            raise Unclear(exc.code, exc.text) from exc
        said = await self.ask("switch", key.key_id)
        if said != f"{key.key_id} {fingerprint(key.api_key).hex()}":
            raise Unclear("KEY_OTHER", f"{own} goes on with another key than the one in the vault")

    async def forget(self, key_id: str) -> None:
        """See `rotation.Custody`."""
        await self.ask("forget", key_id)


class KeysAtVenue:
    """The keys of one sub-account at the venue: `rotation.Venue`.

    `role` and `addresses` are what a new key is made for; `key` has keys sign the question about themselves.
    """

    def __init__(
        self,
        client: VenueClient,
        adapter: Adapter,
        host: str,
        admin: KeyAdmin,
        key: Probe,
        role: Role,
        addresses: tuple[str, ...],
        clock: Callable[[], int],
    ) -> None:
        self._client = client
        self._adapter = adapter
        self._host = host
        self._admin = admin
        self._key = key
        self._role = role
        self._addresses = addresses
        self._clock = clock

    async def _send(self, request: SignedRequest) -> tuple[int, bytes]:
        try:
            return await self._client.send(Signed(id=0, **msgspec.structs.asdict(request)))
        except (Unsent, Lost) as exc:
            raise Unclear(exc.code, exc.text) from exc

    async def create(self, label: str, key: KeyRef) -> str:
        """See `rotation.Venue`."""
        request = self._admin.create(label, self._role, self._addresses, key.public_key)
        made: NewKey = _plain(self._admin.created(*await self._send(request)))
        return made.api_key

    async def find(self, label: str) -> tuple[str, ...]:
        """See `rotation.Venue`."""
        return tuple([key for key, its in await self.listed() if its == label])

    async def listed(self) -> list[tuple[str, str]]:
        """Every key of the sub-account: its id and its label."""
        found: list[tuple[str, str]] = []
        page = ""
        for _ in range(MAX_PAGES):
            status, body = await self._send(self._admin.list_keys(page))
            try:
                listed: Listed = _plain(self._admin.listed(status, body, page))
            except Malformed as exc:
                raise Unclear(exc.code, exc.text) from exc
            found += [(key.api_key, key.label) for key in listed.keys]
            page = listed.next
            if not page:
                return found
        raise Unclear("VENUE_ANSWER", f"a list of API keys that has not ended after {MAX_PAGES} pages")

    async def bind(self, api_key: str) -> None:
        """See `rotation.Venue`."""
        done = self._admin.done(*await self._send(self._admin.restrict(api_key, self._role, self._addresses)))
        _plain(done)

    async def _rights(self, key: KeyRef) -> KeyRights | Rejected:
        """What the key may do; what the venue says where it refuses it.  Raises `Unclear`."""
        try:
            request = self._adapter.rights_probe(self._host, key.api_key, await self._key.probe(key.key_id))
            answer = self._adapter.rights_answer(*await self._send(request))
        except Malformed as exc:
            raise Unclear(exc.code, exc.text) from exc
        if isinstance(answer, NoAnswer) or (isinstance(answer, Rejected) and answer.about == "clock"):
            raise Unclear(answer.code, answer.text)
        return answer

    async def require_fit(self, key: KeyRef) -> None:
        """See `rotation.Venue`."""
        rights: KeyRights = _plain(await self._rights(key))
        asked = self._admin.addresses(key.api_key)
        try:
            if asked is not None:
                rights = _plain(self._admin.addressed(rights, *await self._send(asked)))
            require_fit(rights, self._role, now=self._clock(), addresses=self._addresses)
        except Malformed as exc:
            raise Unclear(exc.code, exc.text) from exc
        except KeyUnfit as exc:
            raise Refused(exc.code, exc.text) from exc

    async def accepts(self, key: KeyRef) -> bool:
        """See `rotation.Venue`."""
        rights = await self._rights(key)
        if isinstance(rights, Rejected) and not is_unknown(self._adapter.KEYS, rights):
            raise Unclear(rights.code, rights.text)
        return isinstance(rights, KeyRights)

    async def delete(self, api_key: str) -> None:
        """See `rotation.Venue`."""
        answer = self._admin.done(*await self._send(self._admin.delete(api_key)))
        if isinstance(answer, Rejected) and api_key not in {key for key, _ in await self.listed()}:
            return
        _plain(answer)

    async def is_dead(self, key: KeyRef) -> bool:
        """See `rotation.Venue`."""
        refused = is_unknown(self._adapter.KEYS, await self._rights(key))
        return refused and key.api_key not in {api_key for api_key, _ in await self.listed()}
