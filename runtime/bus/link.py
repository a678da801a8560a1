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
import random
import ssl
from collections.abc import Callable, Mapping
from typing import Final, Protocol

import msgspec

from tallystick.runtime.bus.log import Log
from tallystick.runtime.bus.metrics import Metrics
from tallystick.runtime.bus.tasks import Tasks
from tallystick.runtime.bus.wire import BrokerError, Message, NoResponders, Wire, frame
from tallystick.schemas.credential import Credential, open_credential
from tallystick.schemas.errors import BootOver, LoginRefused, Malformed, TallystickError, Unreachable, Unverified
from tallystick.schemas.nats_jwt import SessionKey, sign_nonce
from tallystick.schemas.trust import TrustRoot

RENEW_AT: Final = 0.6
CONNECT_TIMEOUT_S: Final = 3
# How long a replaced connection stays up for the acknowledgements that are still under way.
GRACE_S: Final = 2.0
# How often the clock is looked at: it may have been set.
CHECK_S: Final = 0.5
BACKOFF_S: Final = (0.05, 0.1, 0.2, 0.5, 1.0)
# One write of small messages.
WRITE_BYTES: Final = 1 << 18


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
    duplicate: bool = False


class _Error(msgspec.Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class _Answer(msgspec.Struct):
    seq: int = 0
    duplicate: bool = False
    error: _Error | None = None


_answer_decoder = msgspec.json.Decoder(_Answer)


class PublishRefused(TallystickError):
    """JetStream answered a publish with an error; `code` is `JS_<err_code>`."""


class ConnectionLost(TallystickError):
    """The connection was lost before the acknowledgement came: the message is stored, or it is not."""


class SessionLost(TallystickError):
    """The authority says that this boot has ended; only a new process gets a session."""


class Outgoing(msgspec.Struct, frozen=True):
    """One message to store."""

    subject: str
    payload: bytes
    id: str


class Flight:
    """What JetStream answered to messages that were sent together.

    `answers` are in their order: None where none came.  `done` is set when all have come, or none will any more.
    """

    def __init__(self, count: int) -> None:
        self.answers: list[PubAck | PublishRefused | None] = [None] * count
        self.done = asyncio.Event()
        self._missing = count

    def answer(self, number: int, answer: PubAck | PublishRefused) -> None:
        """Take note of one."""
        self.answers[number] = answer
        self._missing -= 1
        if self._missing == 0:
            self.done.set()

    async def acknowledged(self) -> list[PubAck]:
        """Every acknowledgement.  Raises `PublishRefused`, or `ConnectionLost` where one will not come."""
        await self.done.wait()
        stored: list[PubAck] = []
        for answer in self.answers:
            if answer is None:
                raise ConnectionLost("CONNECTION_LOST", "before the acknowledgement")
            if isinstance(answer, PublishRefused):
                raise answer
            stored.append(answer)
        return stored


class Connection:
    """One login.  `lost` is set when it is gone for whatever reason, `superseded` then or when replaced.

    What it raises when it breaks is an `OSError`.
    """

    def __init__(self, session: OwnSession, inbox: str) -> None:
        self.session = session
        self.lost = asyncio.Event()
        self.superseded = asyncio.Event()
        self._wire: Wire | None = None
        self._inbox = inbox
        self._count = 0
        self._acks: dict[str, tuple[Flight, int]] = {}
        self._answers: dict[str, asyncio.Future[Message]] = {}

    @property
    def wire(self) -> Wire:
        """The connection to write to.  Raises `ConnectionError` when it is gone."""
        if self._wire is None or self.lost.is_set():
            raise ConnectionError("connection closed")
        return self._wire

    @property
    def alive(self) -> bool:
        """Whether the connection can be used."""
        return not self.lost.is_set()

    def new_inbox(self) -> str:
        """A fresh subject below the component's own inbox."""
        self._count += 1
        return f"{self._inbox}.r{self._count}"

    async def open(self, wire: Wire) -> None:
        """Hear acknowledgements and answers; called once after login."""
        self._wire = wire
        wire.subscribe(f"{self._inbox}.a.*", self._on_ack)
        wire.subscribe(f"{self._inbox}.q.*", self._on_answer)
        await wire.flush()

    async def publish(self, *messages: Outgoing) -> Flight:
        """Send messages to be stored.  Raises `OSError`; some may be stored then."""
        wire, flight = self.wire, Flight(len(messages))
        frames, size = [], 0
        for number, message in enumerate(messages):
            self._count += 1
            token = str(self._count)
            self._acks[token] = flight, number
            made = frame(message.subject, message.payload, f"{self._inbox}.a.{token}", {"Nats-Msg-Id": message.id})
            frames.append(made)
            size += len(made)
            if size > WRITE_BYTES:
                wire.write(b"".join(frames))
                frames, size = [], 0
                await wire.drained()
        wire.write(b"".join(frames))
        return flight

    async def request(
        self, subject: str, body: bytes = b"", *, timeout_s: float, headers: Mapping[str, str] | None = None
    ) -> Message:
        """One request and its answer.  Raises `NoResponders`, `TimeoutError`, `OSError`."""
        self._count += 1
        token = str(self._count)
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._answers[token] = answer
        try:
            self.wire.send(subject, body, f"{self._inbox}.q.{token}", headers)
            async with asyncio.timeout(timeout_s):
                message = await answer
        finally:
            del self._answers[token]
        if message.headers.get("Status") == "503":
            raise NoResponders(f"{subject}: nobody answers")
        return message

    def _on_answer(self, message: Message) -> None:
        future = self._answers.get(message.subject.rsplit(".", 1)[1])
        if future is not None and not future.done():
            future.set_result(message)

    def _on_ack(self, message: Message) -> None:
        flight, number = self._acks.pop(message.subject.rsplit(".", 1)[1], (None, 0))
        if flight is not None:
            flight.answer(number, _read(message))

    def mark_lost(self) -> None:
        """Nothing may use this connection any more; acknowledgements that are due will not come."""
        self.lost.set()
        self.superseded.set()
        for flight, _ in self._acks.values():
            flight.done.set()
        self._acks.clear()
        for future in self._answers.values():
            if not future.done():
                future.set_exception(ConnectionError("connection lost before the answer"))

    async def close(self) -> None:
        """Close at once; idempotent."""
        self.mark_lost()
        if self._wire is not None:
            await self._wire.close()


def _read(message: Message) -> PubAck | PublishRefused:
    """An acknowledgement, or what the broker said in its place."""
    status = message.headers.get("Status")
    if status:
        return PublishRefused(f"JS_{status}", f"the broker answered {status}")
    try:
        answer = _answer_decoder.decode(message.data)
    except msgspec.MsgspecError as exc:
        return PublishRefused("JS_ANSWER", f"not an acknowledgement: {exc}")
    if answer.error is not None:
        return PublishRefused(f"JS_{answer.error.err_code}", f"{answer.error.code} {answer.error.description}")
    if answer.seq < 1:
        return PublishRefused("JS_ANSWER", "an acknowledgement without a sequence")
    return PubAck(answer.seq, answer.duplicate)


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
                await connection.wire.flush()
        except OSError:
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
        # Of this login alone: a predecessor that is not gone yet hears what its own inbox gets, and must not be answered
        # for us, nor we for it.
        connection = Connection(session, f"_INBOX_{self.component}.{self._entropy(8).hex()}")

        def refused(exc: BrokerError) -> None:
            self.refusals += 1
            self._metrics.add("broker_errors")
            self._log.warning("broker error", error=str(exc))

        try:
            wire = await Wire.connect(
                self._url,
                tls=self._tls,
                name=self.component,
                token=session.credential.text,
                sign=lambda nonce: sign_nonce(session.key, nonce),
                timeout_s=CONNECT_TIMEOUT_S,
                on_error=refused,
                on_lost=connection.mark_lost,
            )
            await connection.open(wire)
            self.tasks.start(wire.keep_alive(), "ping")
        except OSError as exc:
            await connection.close()
            text = f"{self._url}: {type(exc).__name__}: {exc}; is the broker up?"
            if isinstance(exc, BrokerError):
                raise LoginRefused("BROKER_LOGIN", text) from exc
            raise Unreachable("BROKER_LOGIN", text) from exc
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
                    if self._clock() >= due:
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
