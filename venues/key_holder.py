"""A component's own API key at the venue, while the keymaster changes it: asked on the bus, answered on the bus.

- Who asks is the keymaster, in a live message of a listed session; an operator's signed order has the key read again.
- Which key is in use stands in the vault, beside the PIN of its token: `switch` reads it there and goes on with it, and so
  does the next start.  So it is durable before it is used, and no message can name a key.
- A key is made inside the token (`born`), as many as `MAX_KEYS`, and destroyed (`forget`) unless it is in use, by us or by
  what the vault says.
- `probe` signs one question: what the key itself may do.  It names no account and no amount, and is valid for a second.
  With the key's id it asks for balances as well: it is said where the keymaster and the record read it, and nobody else.
- Requests are answered one by one and at a pace; what does not fit is not answered, and asked again.

The keymaster is not trusted with the key: an attacker who controls it can at most have keys made and unused ones
destroyed, have us sign for another account of the venue's, and read what the account holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import urllib.parse
from collections.abc import Awaitable, Callable
from typing import Final

from tallystick.infra.nats.topology import KEYMASTER
from tallystick.runtime.bus.received import Received
from tallystick.runtime.bus.tasks import end
from tallystick.runtime.deployment.folder import KEY_ROTATED, KEY_VENUE, api_key_name, key_id_name
from tallystick.runtime.deployment.service import ServiceContext
from tallystick.runtime.keys import inventory
from tallystick.runtime.keys.hsm import Token
from tallystick.runtime.keys.key_info import dated, public_pem
from tallystick.runtime.keys.signers import HsmSigner
from tallystick.schemas.errors import ConfigError, TallystickError
from tallystick.schemas.rotation_orders import open_rotation_order
from tallystick.schemas.security import KeyAnswered, KeyAsked, RotationOrdered
from tallystick.schemas.subjects import subject
from tallystick.venues import AccountStream, Adapter, Denied
from tallystick.venues.key_check import Unasked
from tallystick.venues.keys import fingerprint

# The one in use, its successor, and what a rotation that was given up may have left.
MAX_KEYS: Final = 4
WAITING: Final = 8
SPACING_S: Final = 0.05
MAX_TEXT: Final = 400
# Not refused: the venue did not say.
UNASKED: Final = "KEY_UNASKED"
# How soon a stream ends whose key is not fit any more, or another one.
LOOK_S: Final = 0.1
_NAME: Final = re.compile(KEY_ROTATED.decode() + r"[0-9a-f]{16}|" + KEY_VENUE.decode())

Use = Callable[[str, HsmSigner], Awaitable[None]]


def name_of(api_key: str) -> str:
    """What may be shown of a key: the beginning of the SHA-256 of its id."""
    return fingerprint(api_key).hex()[:16]


def names(token: Token) -> set[str]:
    """The keys in a token that can sign, by name."""
    return {bytes.fromhex(key.key_id).decode("ascii", "replace") for key in inventory.keys(token)}


def born(token: Token, key_id: str, now: int) -> str:
    """Make the key pair `key_id` inside the token at `now` (Unix ns), or find it there; its public key in PEM.

    Raises `ConfigError`.
    """
    if key_id not in names(token):
        # Half a key, as a crash leaves it, or another process at the token's files: none, and in the way of a whole one.
        with contextlib.suppress(ConfigError):
            token.destroy(key_id.encode())
        token.generate_ed25519(key_id.encode(), dated(key_id, now))
    return public_pem(token.signer(key_id.encode()).public)


def forget(token: Token, key_id: str) -> None:
    """Destroy it, if it is there.  Raises `ConfigError`."""
    if key_id in names(token):
        token.destroy(key_id.encode())


class KeyHolder:
    """See the module docstring.  `use(API key, signer)` has the component sign with that from then on.

    `host` is the venue's, for which alone anything is signed.
    """

    def __init__(self, ctx: ServiceContext, token: Token, adapter: Adapter, host: str, use: Use) -> None:
        self._ctx = ctx
        self._token = token
        self._adapter = adapter
        self._host = host
        self._use = use
        self._key_id = ctx.secret_or(key_id_name(ctx.component), KEY_VENUE.decode())
        self._api_key = ctx.secret(api_key_name(ctx.component)).reveal()
        self._asked: asyncio.Queue[KeyAsked | None] = asyncio.Queue(WAITING)

    @property
    def api_key(self) -> str:
        """The id, at the venue, of the key in use."""
        return self._api_key

    @property
    def name(self) -> str:
        """What may be shown of it."""
        return name_of(self._api_key)

    def signer(self) -> HsmSigner:
        """The key in use.  Raises `ConfigError`."""
        return self._token.signer(self._key_id.encode())

    def start(self) -> None:
        """Listen; called in the component's `start`."""
        self._ctx.subscribe((f"control.key.{KEYMASTER}", "control.config.breaker"), self._on_control)
        self._ctx.spawn(self._serve())

    async def _on_control(self, received: Received) -> None:
        wanted = [event for event in received.events if isinstance(event, KeyAsked | RotationOrdered)]
        if not wanted or not received.live:
            return
        (await self._ctx.admit(received)).require_listed()
        for event in wanted:
            if isinstance(event, KeyAsked):
                if received.subject.component == KEYMASTER and event.holder == self._ctx.component:
                    self._put(event)
                continue
            order = open_rotation_order(event.note, self._ctx.trust, self._ctx.clock())
            if (order.component, order.act) == (self._ctx.component, "reread"):
                self._put(None)

    def _put(self, asked: KeyAsked | None) -> None:
        if not self._asked.full():
            self._asked.put_nowait(asked)

    async def _serve(self) -> None:
        to = subject("control.key", component=self._ctx.component)
        while True:
            asked = await self._asked.get()
            code, text, result = "", "", ""
            try:
                result = await (self._switch() if asked is None else self._do(asked))
            except TallystickError as exc:
                code, text = exc.code, exc.text[:MAX_TEXT]
                if isinstance(exc, Unasked):
                    code, text = UNASKED, str(exc)[:MAX_TEXT]
                self._ctx.log.warning(
                    "key not changed", op="reread" if asked is None else asked.op, code=code, text=text
                )
            if asked is not None:
                self._ctx.publish(to, self._ctx.new(KeyAnswered, asked=asked.id, code=code, text=text, result=result))
            await asyncio.sleep(SPACING_S)

    async def _do(self, asked: KeyAsked) -> str:
        if not _NAME.fullmatch(asked.key_id):
            raise Denied("KEY_NAME", f"{asked.key_id[:48]!r} is no key of the venue's")
        match asked.op:
            case "current":
                return self._said()
            case "born":
                return await asyncio.to_thread(self._born, asked.key_id)
            case "probe":
                return await asyncio.to_thread(self._probe, asked.key_id)
            case "switch":
                return await self._switch()
            case "forget":
                return await self._forget(asked.key_id)

    def _said(self) -> str:
        return f"{self._key_id} {fingerprint(self._api_key).hex()}"

    def _born(self, key_id: str) -> str:
        if key_id == self._key_id:
            return public_pem(self.signer().public)
        there = names(self._token)
        if key_id not in there and len(there) >= MAX_KEYS:
            raise Denied("KEY_ROOM", f"{len(there)} keys in token {self._token.label!r}: destroy what is not used")
        return born(self._token, key_id, self._ctx.clock())

    def _probe(self, key_id: str) -> str:
        signer = self._token.signer(key_id.encode())
        request = self._adapter.rights_request(self._host, "", signer, self._ctx.clock)
        return urllib.parse.urlsplit(request.url).query

    async def _named(self) -> tuple[str, str]:
        """Which key the vault names now: its id in the token, and at the venue."""
        found, own = await self._ctx.leased.reread(), self._ctx.component
        key_id = found[key_id_name(own)].reveal() if key_id_name(own) in found else KEY_VENUE.decode()
        if not _NAME.fullmatch(key_id):
            raise Denied("KEY_NAME", f"the vault names {key_id[:48]!r}, which is no key of the venue's")
        return key_id, found[api_key_name(own)].reveal()

    async def _switch(self) -> str:
        key_id, api_key = await self._named()
        if (key_id, api_key) != (self._key_id, self._api_key):
            signer = await asyncio.to_thread(self._token.signer, key_id.encode())
            await self._use(api_key, signer)
            self._key_id, self._api_key = key_id, api_key
            self._ctx.log.info("key changed", key=fingerprint(api_key).hex()[:16], key_id=key_id)
        return self._said()

    async def _forget(self, key_id: str) -> str:
        named, _ = await self._named()
        if key_id in {named, self._key_id}:
            raise Denied("KEY_IN_USE", f"{key_id} is the key that {self._ctx.component} signs with")
        await asyncio.to_thread(forget, self._token, key_id)
        return ""


class RenewableStream:
    """An account's stream that goes on with another key, and only while its key is fit.

    `make(API key, signer)` makes the next one; `live()` says whether the key is fit; `key` is what may be shown of it.
    """

    def __init__(
        self,
        make: Callable[[str, HsmSigner], AccountStream],
        api_key: str,
        signer: HsmSigner,
        live: Callable[[], bool],
    ) -> None:
        self._make = make
        self._live = live
        self.use(api_key, signer)

    def use(self, api_key: str, signer: HsmSigner) -> None:
        """Follow with this key from now on: what is missed between the two is fetched, as after any break."""
        self._stream = self._make(api_key, signer)
        self.key = name_of(api_key)

    async def run(self) -> None:
        """See `venues.AccountStream`."""
        while True:
            if not self._live():
                await asyncio.sleep(LOOK_S)
                continue
            stream = self._stream
            running = asyncio.create_task(stream.run(), name="stream")
            try:
                while self._live() and stream is self._stream and not running.done():
                    await asyncio.wait((running,), timeout=LOOK_S)
                if running.done():
                    running.result()
            finally:
                await end(running)
