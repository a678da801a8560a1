"""`tallystick rotate` without a keymaster: a person makes and deletes the keys on the venue's site, we prove the rest.

It is the same rotation (`keymaster.rotation`), with a person for the venue's API and the operator's own access for the
token and the vault.  Where it is left off, it goes on when it is called again: each state is kept in a sealed file.
"""

from __future__ import annotations

import asyncio
import secrets as entropy
import time
from collections.abc import Callable
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag

from tallystick import venues
from tallystick.cli.rotate import order
from tallystick.components.keymaster.main import HOLDERS
from tallystick.components.keymaster.rotation import (
    ENDS,
    KeyRef,
    Refused,
    Rotation,
    Unclear,
    advance,
    begin,
    decode,
    encode,
    revoke_first,
)
from tallystick.infra.vault import access
from tallystick.runtime.bus.post import get
from tallystick.runtime.deployment import board, vault, vault_access
from tallystick.runtime.deployment import folder as layout
from tallystick.runtime.deployment.folder import Deployment
from tallystick.runtime.keys.hsm import Token
from tallystick.runtime.keys.keystore import Keystore, Secret
from tallystick.runtime.keys.sealed_file import SealedFile
from tallystick.runtime.vault.client import VaultAway, VaultRefused
from tallystick.schemas.bounds import SECOND
from tallystick.schemas.errors import ConfigError, Malformed, Unreachable
from tallystick.venues import NoAnswer, Rejected, guided
from tallystick.venues.key_holder import born, forget, name_of
from tallystick.venues.keys import KeyRights, KeyUnfit, is_unknown, require_fit

MAGIC: Final = b"tallystick by hand v1\n\n"
MAX_FILE: Final = 65_536
ANSWER_S: Final = 5.0
MAX_ANSWER: Final = 65_536
SWITCH_S: Final = 10.0

Ask = Callable[[str], str]


class Hand:
    """Both sides of a rotation (`rotation.Custody`, `rotation.Venue`) by hand; `ask` shows a text and gives the answer.

    `told` is told what is waited for.
    """

    def __init__(
        self,
        deployment: Deployment,
        keystore: Keystore,
        component: str,
        ask: Ask,
        told: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._told = told
        self._deployment = deployment
        self._keystore = keystore
        self._component = component
        self._ask = ask
        record = deployment.load_trust()[-1].venues[deployment.config.venue.name]
        self._host = record.host
        self._adapter = venues.adapter(record.kind)
        self._tls = venues.client_tls(deployment.venue_ca)
        rotation = deployment.config.rotation
        self._addresses = () if rotation is None else rotation.addresses
        self.made: tuple[str, ...] = ()

    def secrets(self) -> dict[str, Secret]:
        """What the vault holds for the component.  Raises `VaultAway`, `VaultRefused`."""
        with vault.opened(self._deployment, self._keystore, self._told) as its:
            return dict(its.secrets(self._component))

    def current(self) -> KeyRef:
        """The key in use, as the vault names it."""
        found, name = self.secrets(), layout.key_id_name(self._component)
        key_id = found[name].reveal() if name in found else layout.KEY_VENUE.decode()
        return KeyRef(key_id=key_id, api_key=found[layout.api_key_name(self._component)].reveal())

    def _token(self, *, writable: bool = False) -> Token:
        place, pin = self._deployment.token(self._component), self.secrets()[layout.pin_name(self._component)]
        return Token.open(place, self._component, pin, writable=writable)

    # -- the token and the vault

    async def born(self, key_id: str) -> str:
        """See `rotation.Custody`."""
        with self._token(writable=True) as token:
            return born(token, key_id, time.time_ns())

    async def switch(self, key: KeyRef) -> None:
        """See `rotation.Custody`; the component says on its board which key it uses."""
        own = self._component
        named = {layout.api_key_name(own): Secret(key.api_key), layout.key_id_name(own): Secret(key.key_id)}
        try:
            with vault_access.staff(self._deployment, self._keystore, access.OPERATOR) as client:
                vault_access.store(client, own, named)
            await order(self._deployment, self._keystore, own, "reread")
        except (VaultAway, VaultRefused) as exc:
            raise Unclear(exc.code, exc.text) from exc
        ends = time.monotonic() + SWITCH_S
        while board.read(self._deployment, own).get("key") != name_of(key.api_key):
            if time.monotonic() > ends:
                raise Unclear("KEY_OTHER", f"{own} goes on with another key than the one in the vault: see its log")
            await asyncio.sleep(0.1)

    async def forget(self, key_id: str) -> None:
        """See `rotation.Custody`."""
        with self._token(writable=True) as token:
            forget(token, key_id)

    # -- the venue

    async def create(self, label: str, key: KeyRef) -> str:
        """See `rotation.Venue`."""
        role = HOLDERS[self._component]
        for step in guided.to_make(self._adapter.KEYS, role, label, self._addresses, key.public_key):
            self._ask(f"{step}\nPress Enter when it is done.")
        api_key = ""
        while not (api_key.isascii() and api_key.isalnum()):
            api_key = self._ask("The id that the venue gave the key (letters and digits):").strip()
        self.made = (api_key,)
        return api_key

    async def find(self, _: str) -> tuple[str, ...]:
        """What the person made: nobody can read the venue's list."""
        return self.made

    async def bind(self, _: str) -> None:
        """The person did, and `require_fit` sees whether."""

    async def _rights(self, key: KeyRef) -> KeyRights | Rejected:
        with self._token() as token:
            signer = token.signer(key.key_id.encode())
            request = self._adapter.rights_request(self._host, key.api_key, signer, time.time_ns)
        try:
            status, body = await get(request.url, request.headers, self._tls, timeout_s=ANSWER_S, limit=MAX_ANSWER)
            answer = self._adapter.rights_answer(status, body)
        except (Unreachable, Malformed) as exc:
            raise Unclear(exc.code, exc.text) from exc
        if isinstance(answer, NoAnswer):
            raise Unclear(answer.code, answer.text)
        return answer

    async def require_fit(self, key: KeyRef) -> None:
        """See `rotation.Venue`."""
        rights = await self._rights(key)
        try:
            if isinstance(rights, Rejected):
                raise Refused(rights.code, rights.text)
            require_fit(rights, HOLDERS[self._component], now=time.time_ns())
        except (KeyUnfit, Refused) as exc:
            self._ask(f"The new key is not fit: {exc.text}\nPress Enter when that is corrected.")
            raise Refused(exc.code, exc.text) from exc

    async def accepts(self, key: KeyRef) -> bool:
        """See `rotation.Venue`."""
        return isinstance(await self._rights(key), KeyRights)

    async def delete(self, api_key: str) -> None:
        """See `rotation.Venue`."""
        self._ask(f"{guided.to_delete(self._adapter.KEYS, api_key)}\nPress Enter when it is done.")

    async def is_dead(self, key: KeyRef) -> bool:
        """See `rotation.Venue`; there is no list to read."""
        return is_unknown(self._adapter.KEYS, await self._rights(key))


async def rotate(
    deployment: Deployment,
    keystore: Keystore,
    component: str,
    ask: Ask,
    told: Callable[[str], None],
    *,
    stolen: bool = False,
) -> bool:
    """Change the key of `component` with a person's help; whether it was changed.  Raises `ConfigError`.

    `stolen`: the old key is deleted first, where it is not known to be deleted soon.
    """
    folder = deployment.state("by-hand")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"{component}.rotation"
    secret = keystore[layout.passphrase_name(layout.OPERATOR)]
    file = SealedFile(path, MAGIC, deployment.name, f"{layout.OPERATOR}/{component}", secret, most=MAX_FILE)
    hand = Hand(deployment, keystore, component, ask, told)

    waited = ""

    def keep(state: Rotation) -> None:
        nonlocal waited
        file.write(encode(state))
        told(f"{component}: {state.step}{f' ({state.text})' if state.text else ''}")
        waited = ""

    def waits(why: str) -> None:
        nonlocal waited
        if why != waited:
            waited = why
            told(f"{component}: trying again: {why}")

    try:
        state = decode(file.read())
        hand.made = (state.new.api_key,) if state.new.api_key else ()
        told(f"{component}: going on after {state.step}")
        # A person was away meanwhile: the time is not the venue's fault.
        state = msgspec.structs.replace(state, begun=time.time_ns())
    except FileNotFoundError:
        venue = deployment.config.venue.name
        state = begin(entropy.token_hex(8), venue, component, hand.current(), time.time_ns())
        keep(state)
    except (OSError, InvalidTag) as exc:
        raise ConfigError("ROTATION_STATE", f"{path} is damaged or another's: move it away") from exc
    if stolen and (sooner := revoke_first(state, time.time_ns())):
        state = sooner
        keep(state)
    while state.step not in ENDS:
        state, wait = await advance(state, hand, hand, time.time_ns(), keep, waits)
        await asyncio.sleep(wait / SECOND)
    path.unlink()
    return state.step == "forgotten"
