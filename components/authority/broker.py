"""The authority's hands on the broker: revocation, renewal of account tokens, and who is connected.

- Account tokens expire within a day and are pushed again long before; what is pushed carries every
  revocation that still matters, so that a token pushed later never revives a session.
- Revocation at the broker is an account token whose revocation list names the session keys; the broker
  disconnects them.  It is the second lock: verifiers refuse a revoked session by the list alone.
- CONNZ is the broker's own word on who is connected: useful against intruders, worthless against the
  broker itself.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable, Mapping
from typing import Final

import nats.errors
from nats.aio.client import Client

from tallystick.infra.nats.claims import Accounts, BusKeys, Validity
from tallystick.infra.nats.connz import CONNZ_REQUEST, Mismatch, connz_mismatches
from tallystick.schemas.bounds import SECOND
from tallystick.schemas.errors import Unverified
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
    ) -> None:
        self._url = url
        self._tls = tls
        self._accounts = accounts
        self._keys = keys
        self._system_role = system_role
        self._clock = clock
        self._entropy = entropy
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
            tokens = []
            for component, found in by_component.items():
                table = self._revoked.setdefault(component, {})
                for session in found:
                    # The entry outlives every token of that key; the broker compares it with `iat`.
                    table[session.session_key] = now // SECOND + 1
                tokens.append(self._accounts.component(component, self._validity(), table))
            await self._push(tokens)

    async def adopt(self) -> None:
        """Take what the broker holds now as pushed last, and push what revocations of an earlier boot change.

        The broker was given fresh tokens when it started.  They are not pushed again without need: the broker
        drops the pulls that wait in an account whose token changes, and its reader notices only by the silence.
        Raises `Unverified`.
        """
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
            except (TimeoutError, nats.errors.Error) as exc:
                raise Unverified("CLAIMS_LOOKUP", f"the broker did not answer: {type(exc).__name__}") from exc
            finally:
                await client.close()
            validity = self._validity()
            await self._push([self._accounts.component(c, validity, table) for c, table in self._revoked.items()])

    async def refresh(self) -> None:
        """Push every account's token anew before the old ones expire, revocations included."""
        async with self._lock:
            horizon = self._clock() // SECOND - ACCOUNT_LIFETIME_S
            for table in self._revoked.values():
                for key in [k for k, at in table.items() if at < horizon]:
                    del table[key]
            await self._push(list(self._accounts.all(self._validity(), self._revoked).values()))

    def remember_revoked(self, sessions: tuple[ListedSession, ...]) -> None:
        """Revocations of an earlier boot of the authority, so that no token pushed from now on undoes them."""
        now = self._clock() // SECOND
        for session in sessions:
            if session.session_key:
                self._revoked.setdefault(session.component, {})[session.session_key] = now + 1

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
        except (TimeoutError, nats.errors.Error) as exc:
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
            except (TimeoutError, nats.errors.Error) as exc:
                raise Unverified("CLAIMS_LOOKUP", f"the broker did not answer: {type(exc).__name__}") from exc
            finally:
                await client.close()
            if found:
                await self._push([self._pushed[account] for account in found])
        return found

    def _validity(self) -> Validity:
        now = self._clock() // SECOND
        return Validity(issued_s=now, expires_s=now + ACCOUNT_LIFETIME_S)

    async def _push(self, tokens: list[str]) -> None:
        client = await self._connect()
        try:
            for token in tokens:
                reply = await client.request("$SYS.REQ.CLAIMS.UPDATE", token.encode(), timeout=TIMEOUT_S)
                answer = json.loads(reply.data)
                if answer.get("error"):
                    raise Unverified("CLAIMS_UPDATE", f"the broker refused an account token: {answer['error']}")
                self._pushed[decode_jwt(token).sub] = token
        except (TimeoutError, nats.errors.Error, ValueError) as exc:
            raise Unverified("CLAIMS_UPDATE", f"the broker did not confirm: {type(exc).__name__}") from exc
        finally:
            await client.close()

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
        except (TimeoutError, nats.errors.Error, OSError) as exc:
            raise Unverified("BROKER_SYSTEM", f"{self._url}: {type(exc).__name__}: {exc}") from exc
        return client
