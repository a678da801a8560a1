"""The connection of one component to the broker: login, renewal, reconnection.

- A `Connection` is one login with one session (session key and credential); it never reconnects by
  itself, because a client that does may log in with a dead token or swallow its expiry.
- The `Link` keeps exactly one current connection.  Renewal is make-before-break: at 60 % of the
  credential's lifetime a new session is obtained and logged in, the link switches to it, and the old
  connection is closed after a grace period in which its unacknowledged flush completes.
- A boot that has ended gets no session any more (`SessionLost`): the component stops, and starts anew as another boot.
- A lost connection is replaced with back-off; a credential that is about to expire is renewed first.
- Whoever uses the link asks for the current connection each time (`connection`), and does its own
  recovery when `Connection.lost` is set: publishers send the same bytes again, readers reset.

The broker is not trusted: it can refuse service, and nothing here believes it more than that.  The
session key signs login nonces only of their exact form (`nats_jwt.sign_nonce`).
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import ssl
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from tallystick.runtime.bus.log import Log
from tallystick.runtime.bus.metrics import Metrics
from tallystick.runtime.bus.tasks import Tasks
from tallystick.schemas.credential import Credential, open_credential
from tallystick.schemas.errors import BootOver, LoginRefused, Malformed, TallystickError, Unreachable, Unverified
from tallystick.schemas.nats_jwt import SessionKey, sign_nonce
from tallystick.schemas.trust import TrustRoot

RENEW_AT: Final = 0.6
CONNECT_TIMEOUT_S: Final = 3
# How long a replaced connection stays up for the acknowledgements that are still under way.
GRACE_S: Final = 2.0
CLOSE_S: Final = 0.3
# How often the client is asked whether it is closed.
CHECK_S: Final = 0.5
BACKOFF_S: Final = (0.05, 0.1, 0.2, 0.5, 1.0)
MAX_PENDING_BYTES: Final = 64 << 20


class OwnSession(msgspec.Struct, frozen=True):
    """A session key and the credential that names it."""

    credential: Credential
    key: SessionKey


class CredentialSource(Protocol):
    """Where sessions come from.  `obtain` returns the credential's text for a session key of this boot.

    It raises `TallystickError` when the authority refuses or cannot be reached; the link tries again.
    """

    async def obtain(self, key: SessionKey, boot: bytes) -> str:
        """The credential's text.  Raises `TallystickError`."""
        ...


class PubAck(msgspec.Struct, frozen=True):
    """JetStream's acknowledgement: stored at `seq`, or known before (`duplicate`)."""

    seq: int
    duplicate: bool


class PublishRefused(TallystickError):
    """JetStream answered a publish with an error; `code` is `JS_<err_code>`."""


class ConnectionLost(TallystickError):
    """The connection was lost before the acknowledgement came: the message is stored, or it is not."""


class SessionLost(TallystickError):
    """The authority says that this boot has ended; only a new process gets a session."""


class Connection:
    """One login.  `lost` is set when it is gone for whatever reason, `superseded` then or when replaced."""

    def __init__(self, client: Client, session: OwnSession, inbox: str) -> None:
        self.client = client
        self.session = session
        self.lost = asyncio.Event()
        self.superseded = asyncio.Event()
        self._inbox = inbox
        self._count = 0
        self._acks: dict[str, asyncio.Future[PubAck]] = {}

    @property
    def alive(self) -> bool:
        """Whether the connection can be used."""
        return not self.lost.is_set()

    def new_inbox(self) -> str:
        """A fresh subject below the component's own inbox."""
        self._count += 1
        return f"{self._inbox}.r{self._count}"

    async def listen_for_acks(self) -> None:
        """Subscribe to acknowledgements; called once after login."""
        await self.client.subscribe(f"{self._inbox}.a.*", cb=self._on_ack)

    async def publish(self, subject: str, payload: bytes, message_id: str) -> asyncio.Future[PubAck]:
        """Send one message; the future is JetStream's answer.

        It raises `PublishRefused` where that is an error, `ConnectionLost` where none will come.
        """
        if not self.alive:
            raise nats.errors.ConnectionClosedError
        self._count += 1
        token = str(self._count)
        future: asyncio.Future[PubAck] = asyncio.get_running_loop().create_future()
        self._acks[token] = future
        future.add_done_callback(lambda done: self._answered(token, done))
        await self.client.publish(
            subject, payload, reply=f"{self._inbox}.a.{token}", headers={"Nats-Msg-Id": message_id}
        )
        return future

    def _answered(self, token: str, future: asyncio.Future[PubAck]) -> None:
        del self._acks[token]
        # Whoever does not wait for the answer is told nothing.
        if not future.cancelled():
            future.exception()

    async def _on_ack(self, message: Msg) -> None:
        future = self._acks.get(message.subject.rsplit(".", 1)[1])
        if future is None or future.done():
            return
        status = (message.headers or {}).get("Status")
        if status:
            future.set_exception(PublishRefused(f"JS_{status}", f"the broker answered {status}"))
            return
        try:
            answer = json.loads(message.data)
            error = answer.get("error")
            if error is None:
                future.set_result(PubAck(seq=int(answer["seq"]), duplicate=bool(answer.get("duplicate"))))
            else:
                text = f"{error.get('code')} {error.get('description')}"
                future.set_exception(PublishRefused(f"JS_{error.get('err_code', 0)}", text))
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            future.set_exception(PublishRefused("JS_ANSWER", f"not an acknowledgement: {exc}"))

    def mark_lost(self) -> None:
        """Nothing may use this connection any more; acknowledgements that are due will not come."""
        self.lost.set()
        self.superseded.set()
        for future in list(self._acks.values()):
            if not future.done():
                future.set_exception(ConnectionLost("CONNECTION_LOST", "before the acknowledgement"))

    async def close(self) -> None:
        """Close at once; idempotent."""
        self.mark_lost()
        try:
            # TLS waits half a minute for a peer that does not answer its goodbye.
            await asyncio.wait_for(self.client.close(), CLOSE_S)
        except (TimeoutError, nats.errors.Error, OSError):
            # The socket is gone either way, which is all that closing is for.
            return


class Link:
    """The component's one current connection; see the module docstring.

    Owns `session`: readers of it see a credential and the key that fits it, always together.  `refusals` counts
    what the broker refused or failed at on any of its connections.  `tasks` keep the connection; whoever works on
    the link has his own within them, so that `tasks.failed` tells of all.
    """

    def __init__(
        self,
        *,
        component: str,
        boot: bytes,
        url: str,
        tls: ssl.SSLContext,
        trust: TrustRoot,
        source: CredentialSource,
        clock: Callable[[], int],
        entropy: Callable[[int], bytes],
        metrics: Metrics,
        log: Log,
    ) -> None:
        self.component = component
        self.boot = boot
        self._url = url
        self._tls = tls
        self._trust = trust
        self._source = source
        self._clock = clock
        self._entropy = entropy
        self._metrics = metrics
        self._log = log
        self._current: Connection | None = None
        # Obtained last: what is shown at a login goes with this one alone.
        self._newest: OwnSession | None = None
        self._available = asyncio.Event()
        self.refusals = 0
        self._logins = 0
        self.tasks = Tasks()

    @property
    def session(self) -> OwnSession:
        """The session of the current connection."""
        if self._current is None:
            raise Unverified("NO_SESSION", f"{self.component} has no session yet")
        return self._current.session

    async def start(self) -> None:
        """Log in.  Raises what the first attempt raises, so that a wrong set-up is seen at once."""
        self._switch(await self._login(await self._obtain()))
        self.tasks.start(self._keep(), "link")

    @property
    def connected(self) -> bool:
        """Whether there is a live connection now."""
        return self._current is not None and self._current.alive

    async def connection(self) -> Connection:
        """The current live connection; waits for one while the broker is away."""
        while True:
            current = self._current
            if current is not None and current.alive:
                return current
            self._available.clear()
            await self._available.wait()

    async def answers(self, seconds: float) -> bool:
        """Whether the broker answers within so many seconds, on the current connection or the next one."""
        try:
            async with asyncio.timeout(seconds):
                connection = await self.connection()
                await connection.client.flush()
        except (TimeoutError, nats.errors.Error, OSError):
            return False
        return True

    def abandon(self, connection: Connection, why: str) -> None:
        """The watchdog of a publisher or reader found `connection` useless: replace it."""
        if connection.alive:
            self._log.warning("connection abandoned", why=why)
            connection.mark_lost()

    async def stop(self) -> None:
        """Close everything."""
        await self.tasks.end()
        if self._current is not None:
            await self._current.close()

    def _switch(self, new: Connection) -> None:
        old, self._current = self._current, new
        self._available.set()
        if old is not None:
            old.superseded.set()

    async def _obtain(self) -> OwnSession:
        key = SessionKey(self._entropy(32))
        try:
            text = await self._source.obtain(key, self.boot)
        except BootOver as exc:
            raise SessionLost(exc.code, exc.text) from exc
        credential = open_credential(text, self._trust)
        if (credential.component, credential.boot, credential.session_key) != (self.component, self.boot, key.public):
            raise Unverified("CREDENTIAL_FOREIGN", "the authority handed out a credential that is not ours")
        self._newest = OwnSession(credential=credential, key=key)
        return self._newest

    async def _login(self, session: OwnSession) -> Connection:
        self._logins += 1
        inbox = f"_INBOX_{self.component}.{self._logins}"
        client = Client()
        connection = Connection(client, session, inbox)

        async def closed() -> None:
            connection.mark_lost()

        told: deque[Exception] = deque(maxlen=1)

        async def failed(exc: Exception) -> None:
            told.append(exc)
            self.refusals += 1
            self._metrics.add("broker_errors")
            self._log.warning("broker error", error=str(exc)[:300])

        try:
            await client.connect(
                servers=[self._url],
                name=self.component,
                user_jwt_cb=lambda: bytearray(session.credential.text.encode("ascii")),
                signature_cb=lambda nonce: sign_nonce(session.key, nonce),
                tls=self._tls,
                tls_handshake_first=True,
                allow_reconnect=False,
                # Else the client tries a server that is not there for two minutes, in its own rhythm.
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                connect_timeout=CONNECT_TIMEOUT_S,
                inbox_prefix=f"_INBOX_{self.component}".encode(),
                ping_interval=5,
                max_outstanding_pings=2,
                pending_size=MAX_PENDING_BYTES,
                error_cb=failed,
                closed_cb=closed,
                disconnected_cb=closed,
            )
            await connection.listen_for_acks()
        except (TimeoutError, nats.errors.Error, OSError) as exc:
            await connection.close()
            cause = told[-1] if told and isinstance(exc, nats.errors.NoServersError) else exc
            text = f"{self._url}: {type(cause).__name__}: {cause}; is the broker up?"
            if isinstance(cause, OSError):
                raise Unreachable("BROKER_LOGIN", text) from cause
            raise LoginRefused("BROKER_LOGIN", text) from cause
        self._metrics.add("logins")
        return connection

    async def _keep(self) -> None:
        while True:
            current = self._current
            if current is not None and current.alive:
                credential = current.session.credential
                lifetime = credential.expires_at - credential.issued_at
                due = credential.issued_at + int(lifetime * RENEW_AT)
                wait = max(0.05, (due - self._clock()) / 1e9)
                try:
                    await asyncio.wait_for(current.lost.wait(), min(wait, CHECK_S))
                except TimeoutError:
                    if current.client.is_closed:
                        # It tells nobody when the socket breaks once more while it closes.
                        self._log.warning("connection closed unannounced")
                        current.mark_lost()
                    elif self._clock() >= due:
                        await self._renew(current)
                continue
            await self._replace()

    async def _renew(self, old: Connection) -> None:
        try:
            new = await self._login(await self._obtain())
        except (Unverified, Malformed) as exc:
            # The old session still lives; try again soon, and more often as its end comes near.
            self._log.warning("renewal failed", code=exc.code, text=exc.text)
            self._metrics.add("renewals_failed")
            await asyncio.sleep(0.2 + random.random() * 0.3)  # noqa: S311 - jitter, not a secret
            return
        self._switch(new)
        self._metrics.add("renewals")
        self._retire(old, GRACE_S)

    def _retire(self, old: Connection, grace_s: float) -> None:
        """Close a connection that is no longer the current one, beside whatever else is going on."""

        async def close() -> None:
            await asyncio.sleep(grace_s)
            await old.close()

        self.tasks.start(close(), "retire")

    async def _replace(self) -> None:
        session = self._newest
        if self._current is not None:
            self._retire(self._current, 0.0)
        refused = 0
        for attempt in itertools.count():
            delay = BACKOFF_S[min(attempt, len(BACKOFF_S) - 1)]
            try:
                # The newest credential serves as long as it lives well beyond the login; otherwise renew.
                # After a few refusals by the broker it may be revoked: ask the authority again.
                if session is None or session.credential.expires_at - self._clock() < 2_000_000_000 or refused == 3:
                    session, refused = await self._obtain(), 0
                new = await self._login(session)
            except (Unverified, Malformed) as exc:
                refused += isinstance(exc, LoginRefused)
                self._log.warning("reconnect failed", attempt=attempt + 1, code=exc.code, text=exc.text)
                await asyncio.sleep(delay * (0.5 + random.random()))  # noqa: S311 - jitter, not a secret
                continue
            self._switch(new)
            self._metrics.add("reconnects")
            return
