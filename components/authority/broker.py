"""The authority's hands on the broker: revocation, renewal of account tokens, and who is connected.

- Account tokens expire within a day and are pushed again long before; what is pushed carries every
  revocation that still matters, so that a token pushed later never revives a session.
- A revocation matters until its session has expired.  Where that are many, one line voids everything issued before the
  oldest session that lives, and only what is younger is named: no number of boots fills a token.
- Each account is pushed alone: what is wrong with one leaves the others their tokens.
- Revocation at the broker is an account token whose revocation list names the session keys; the broker
  disconnects them.  It is the second lock: verifiers refuse a revoked session by the list alone.
- CONNZ is the broker's own word on who is connected: useful against intruders, worthless against the
  broker itself.
"""

from __future__ import annotations

import asyncio
import functools
import json
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Final

from tallystick.infra.nats.claims import Accounts, BusKeys, Validity
from tallystick.infra.nats.connz import CONNZ_REQUEST, Mismatch, connz_mismatches
from tallystick.infra.nats.counts import COUNTS, counts, counts_request
from tallystick.runtime.nats_py import Client, NatsError
from tallystick.schemas.bounds import SECOND
from tallystick.schemas.errors import TallystickError, Unverified
from tallystick.schemas.nats_jwt import (
    BOOT_BYTES,
    SessionKey,
    Signer,
    decode_jwt,
    encode_jwt,
    encode_key,
    sign_nonce,
    user_claims,
)
from tallystick.schemas.security import ListedSession

ACCOUNT_LIFETIME_S: Final = 86_400
SYSTEM_LIFETIME_S: Final = 60
TIMEOUT_S: Final = 3.0
# Broker and authority tell the time alike to far less than this: so long a revocation outlives its session.
OUTLIVES_S: Final = 60
# Revocations of one component that its token names one by one; about 70 bytes each of the 262,144 that a token has.
MAX_NAMED: Final = 512

Observe = Callable[[Mapping[str, tuple[int, int]]], Awaitable[None]]


class BrokerAdmin:
    """Pushes account tokens through the system account.  Owns the table of revocations by component and the tokens pushed last."""

    def __init__(
        self,
        *,
        url: str,
        tls: ssl.SSLContext,
        accounts: Accounts,
        keys: BusKeys,
        system_role: Signer,
        clock: Callable[[], int],
        entropy: Callable[[int], bytes],
        oldest: Callable[[str], int | None] = lambda _: None,
        lifetime_s: Callable[[str], int] = lambda _: ACCOUNT_LIFETIME_S,
    ) -> None:
        """`oldest` gives when the oldest live session of a component was issued, `lifetime_s` how long its sessions live."""
        self._url = url
        self._tls = tls
        self._accounts = accounts
        self._keys = keys
        self._system_role = system_role
        self._clock = clock
        self._entropy = entropy
        self._oldest = oldest
        self._lifetime_s = lifetime_s
        # component -> raw session key -> when its session expires, Unix seconds
        self._revoked: dict[str, dict[bytes, int]] = {}
        self._pushed: dict[str, str] = {}
        self._lock = asyncio.Lock()

    async def revoke(self, sessions: tuple[ListedSession, ...]) -> None:
        """Cut these sessions off at the broker.  Raises `Unverified` when the broker does not confirm."""
        now = self._clock()
        by_component: dict[str, list[ListedSession]] = {}
        for session in sessions:
            if session.session_key:
                by_component.setdefault(session.component, []).append(session)
        if not by_component:
            return
        async with self._lock:
            for component, found in by_component.items():
                table = self._revoked.setdefault(component, {})
                table |= {s.session_key: max(s.expires_at, now) // SECOND + 1 for s in found}
            await self._push_components(by_component)

    async def close_account(self, component: str) -> None:
        """Cut every connection of `component` off, and take none, until `open_account`.  Raises `Unverified`."""
        self._accounts.closed.add(component)
        await self._push_account(component)

    async def open_account(self, component: str) -> None:
        """Take connections of `component` again.  Raises `Unverified`."""
        self._accounts.closed.discard(component)
        await self._push_account(component)

    def remember_closed(self, component: str, *, closed: bool = True) -> None:
        """What an earlier boot did; `adopt` makes it so at the broker."""
        (self._accounts.closed.add if closed else self._accounts.closed.discard)(component)

    async def _push_account(self, component: str) -> None:
        async with self._lock:
            await self._push_components((component,))

    async def count(self, components: Sequence[str], every_s: float, observe: Observe) -> None:
        """Ask what `components` have sent so far, again and again for as long as a session lasts.

        `observe` gets messages and bytes of each.  Raises `Unverified` when the broker does not answer.
        """
        names = {encode_key("A", self._keys.components[name].account): name for name in components}
        question = counts_request(names)
        client = await self._connect()
        try:
            for _ in range(int(SYSTEM_LIFETIME_S * 0.6 / every_s)):
                answer = await client.request(COUNTS, question, timeout=TIMEOUT_S)
                await observe({names[a]: sent for a, sent in counts(answer.data).items() if a in names})
                await asyncio.sleep(every_s)
        except (TimeoutError, NatsError) as exc:
            raise Unverified("STATZ", f"the broker did not say what was sent: {type(exc).__name__}") from exc
        finally:
            await client.close()

    async def adopt(self) -> None:
        """Take what the broker holds now as pushed last, and push what revocations of an earlier boot change.

        The broker was given fresh tokens when it started.  They are not pushed again without need: the broker
        drops the pulls that wait in an account whose token changes, and its reader notices only by the silence.
        Raises `Unverified`.
        """
        closed: dict[str, bool] = {}
        async with self._lock:
            client = await self._connect()
            try:
                for keys in self._keys.components.values():
                    account = encode_key("A", keys.account)
                    reply = await client.request(f"$SYS.REQ.ACCOUNT.{account}.CLAIMS.LOOKUP", b"", timeout=TIMEOUT_S)
                    token = reply.data.decode("utf-8", "replace")
                    if decode_jwt(token).iss != encode_key("O", self._keys.operator_signing):
                        raise Unverified("CLAIMS_LOOKUP", f"the broker holds a token of {account} by another issuer")
                    self._pushed[account] = token
                    closed[account] = _is_closed(token)
            except (TimeoutError, NatsError) as exc:
                raise Unverified("CLAIMS_LOOKUP", f"the broker did not answer: {type(exc).__name__}") from exc
            finally:
                await client.close()
            # What an earlier boot closed for good reason it told, and we have closed it again; the rest is opened.
            changed = {
                name
                for name, keys in self._keys.components.items()
                if closed.get(encode_key("A", keys.account), False) != (name in self._accounts.closed)
            }
            await self._push_components(sorted(changed | set(self._revoked)))

    async def refresh(self) -> None:
        """Push every account's token anew before the old ones expire, revocations included."""
        async with self._lock:
            accounts, validity = self._accounts, self._validity()
            tokens = {"SYS": lambda: accounts.system(validity), "CORE": lambda: accounts.core(validity)}
            await self._push(tokens | self._renderers(self._keys.components))

    def remember_revoked(self, sessions: tuple[ListedSession, ...]) -> None:
        """Revocations of an earlier boot of the authority, so that no token pushed from now on undoes them."""
        for session in sessions:
            if session.session_key:
                table = self._revoked.setdefault(session.component, {})
                table[session.session_key] = max(session.expires_at, self._clock()) // SECOND + 1

    def _renderers(self, components: Iterable[str]) -> dict[str, Callable[[], str]]:
        validity = self._validity()

        def of(component: str) -> Callable[[], str]:
            return lambda: self._accounts.component(component, validity, self._revocations(component))

        return {component: of(component) for component in components}

    async def _push_components(self, components: Iterable[str]) -> None:
        await self._push(self._renderers(components))

    def _revocations(self, component: str) -> dict[bytes, int]:
        """What the component's token has to void, and up to which second of issue; the empty key: of all sessions."""
        now = self._clock() // SECOND
        table = {k: until for k, until in self._revoked.get(component, {}).items() if until + OUTLIVES_S > now}
        self._revoked[component] = table
        if len(table) <= MAX_NAMED:
            return dict.fromkeys(table, now + 1)
        oldest = self._oldest(component)
        before = now if oldest is None else oldest // SECOND - 1
        lifetime = self._lifetime_s(component)
        return {b"": before} | {k: now + 1 for k, until in table.items() if until - 1 - lifetime > before}

    async def intruders(self, certificates: Callable[[], Mapping[bytes, bytes]]) -> list[Mismatch]:
        """Kick whoever is connected with a credential that was not issued, or not to the certificate shown.

        `certificates` gives them as in `connz_mismatches`; it is asked after each answer, which may show a session
        that was handed out while the question was on its way.  Raises `Unverified` when the broker does not answer.
        """
        found: list[Mismatch] = []
        client = await self._connect()
        try:
            for keys in self._keys.components.values():
                subject = f"$SYS.REQ.ACCOUNT.{encode_key('A', keys.account)}.CONNZ"
                answer = await client.request(subject, CONNZ_REQUEST, timeout=TIMEOUT_S)
                found += connz_mismatches(answer.data, certificates())
            for mismatch in found:
                order = json.dumps({"cid": mismatch.cid}).encode()
                await client.request(f"$SYS.REQ.SERVER.{mismatch.server}.KICK", order, timeout=TIMEOUT_S)
        except (TimeoutError, NatsError) as exc:
            raise Unverified("CONNZ", f"the broker did not say who is connected: {type(exc).__name__}") from exc
        finally:
            await client.close()
        return found

    async def rolled_back(self) -> list[str]:
        """The accounts (`A…`) whose token at the broker is not the one pushed last; they are pushed again.

        An older token would bring revoked sessions back.  Raises `Unverified` when the broker does not answer.
        """
        found: list[str] = []
        async with self._lock:
            client = await self._connect()
            try:
                for account, token in self._pushed.items():
                    reply = await client.request(f"$SYS.REQ.ACCOUNT.{account}.CLAIMS.LOOKUP", b"", timeout=TIMEOUT_S)
                    if reply.data != token.encode():
                        found.append(account)
            except (TimeoutError, NatsError) as exc:
                raise Unverified("CLAIMS_LOOKUP", f"the broker did not answer: {type(exc).__name__}") from exc
            finally:
                await client.close()
            if found:
                await self._push({account: functools.partial(self._pushed.__getitem__, account) for account in found})
        return found

    def _validity(self) -> Validity:
        now = self._clock() // SECOND
        return Validity(issued_s=now, expires_s=now + ACCOUNT_LIFETIME_S)

    async def _push(self, tokens: Mapping[str, Callable[[], str]]) -> None:
        """Render and push each.  Raises `Unverified` when all were tried and some did not go."""
        failed: list[str] = []
        client = await self._connect()
        try:
            for name, render in tokens.items():
                try:
                    token = render()
                    reply = await client.request("$SYS.REQ.CLAIMS.UPDATE", token.encode(), timeout=TIMEOUT_S)
                    answer = json.loads(reply.data)
                    if answer.get("error"):
                        raise Unverified("CLAIMS_UPDATE", f"the broker refused it: {answer['error']}")
                    self._pushed[decode_jwt(token).sub] = token
                except (TallystickError, TimeoutError, NatsError, ValueError) as exc:
                    failed.append(f"{name}: {type(exc).__name__} {exc}"[:200])
        finally:
            await client.close()
        if failed:
            raise Unverified(
                "CLAIMS_UPDATE", f"{len(failed)} of {len(tokens)} not confirmed: {'; '.join(failed)}"[:1000]
            )

    async def _connect(self) -> Client:
        key = SessionKey(self._entropy(32))
        now = self._clock() // SECOND
        claims = user_claims(
            "authority",
            self._entropy(BOOT_BYTES),
            key.public,
            self._system_role.public,
            self._keys.system_account,
            now,
            now + SYSTEM_LIFETIME_S,
            key.public.hex()[:32],
        )
        token = encode_jwt(self._system_role, "A", claims)
        client = Client()
        try:
            await client.connect(
                servers=[self._url],
                name="authority-system",
                user_jwt_cb=token.encode,
                signature_cb=lambda nonce: sign_nonce(key, nonce),
                tls=self._tls,
                tls_handshake_first=True,
                allow_reconnect=False,
                # Else the client tries a server that is not there for two minutes, in its own rhythm.
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                connect_timeout=3,
                inbox_prefix=b"_INBOX_authority",
            )
        except (TimeoutError, NatsError, OSError) as exc:
            raise Unverified("BROKER_SYSTEM", f"{self._url}: {type(exc).__name__}: {exc}") from exc
        return client


def _is_closed(token: str) -> bool:
    """Whether an account token takes no connection."""
    limits = decode_jwt(token).nats.get("limits")
    return isinstance(limits, dict) and limits.get("conn") == 0
