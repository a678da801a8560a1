"""Custody's door: the signing protocol (`schemas.signing`) on a Unix socket, for execution alone.

- A peer with another uid than the allowed ones is closed before it is read; no peer keeps another one waiting
  (`runtime/unix_socket.py`).
- A frame that does not parse ends its connection; nothing after it is read.
- Orders are asked for under the signature of execution's session, while the vault's lease on the key's secrets holds, and go through `permits`; their line in the journal is written before anything is signed.
- Cancels and queries are signed always, also without a lease, and where the journal cannot be written; those of one order, for ids alone that
  an order of ours can have.
- What is refused is recorded with who asked for what, and told (`refusals`).
- Requests are answered one at a time, in order: the key is used by one thread.

The peer is not trusted: an attacker who controls execution can at most have signed what permits allow,
cancel our orders and ask about them.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final, Protocol, assert_never

import msgspec
import structlog

from tallystick import venues
from tallystick.components.custody.caps import Spent
from tallystick.components.custody.journal import ORDER, Journal
from tallystick.components.custody.permits import Permits
from tallystick.components.custody.refusals import Refusals
from tallystick.runtime.bus.tasks import Tasks
from tallystick.runtime.unix_socket import Peer, UnixServer
from tallystick.runtime.writing import at_once
from tallystick.schemas import signing
from tallystick.schemas.credential import Credential
from tallystick.schemas.ed25519 import BadSignature, verify
from tallystick.schemas.errors import Malformed, TallystickError, Unverified
from tallystick.schemas.ids import id_text
from tallystick.schemas.orders import Decision
from tallystick.schemas.seal import Verified, Verifier
from tallystick.schemas.subjects import ORDERS
from tallystick.venues import Denied, Requests, SignedRequest
from tallystick.venues.two_keys import intent_subject

# Execution uses one connection; the rest is room for its successor, for people, and for who crowds in.
MAX_CONNECTIONS: Final = 16
# Two a request: far above what an exchange takes of orders.
READS_PER_SECOND: Final = 4_000.0
COMPONENT: Final = "custody"
# Who is named where nobody asked.
OURSELVES: Final = Peer(os.getpid(), os.geteuid())


async def _no_waiting(_: Credential, __: str) -> None:
    """For who lists sessions before it asks."""


class Lease(Protocol):
    """How long the key's secrets may be used (`runtime/vault/leased.py:Leased`)."""

    def require_live(self, now: int) -> None:
        """Raise `Unverified` where that is over at `now` (Unix ns)."""
        ...


class Opened(msgspec.Struct, frozen=True):
    """What an order's request holds, each verified by itself: who asks, the decision and the intent."""

    asker: Credential
    decision: Verified
    intent: Verified


class SigningServer:
    """Answers requests on a Unix socket; see the module docstring.

    - `permits`, `verifier`: the rules, under one trust root; `builders`: one for each venue.
    - `allowed_uids`: who may connect; `public_key`: of the signing key, for `status`; `within`: who hears of failures.
    - `checkpoint` is called with the name of each point at which a crash is tested: `permit`, `journalled`,
      `order-signed`.
    - `lease`: without it no order is signed.
    - `listing` waits for the listing of a session that is new (`BusContext.require_listed`).
    - `refusals`: keeps and tells what was refused.
    """

    def __init__(
        self,
        permits: Permits,
        verifier: Verifier,
        builders: Mapping[str, Requests],
        journal: Journal,
        refusals: Refusals,
        clock: Callable[[], int],
        allowed_uids: frozenset[int],
        public_key: bytes,
        within: Tasks,
        checkpoint: Callable[[str], None] = lambda _: None,
        listing: Callable[[Credential, str], Awaitable[None]] = _no_waiting,
        *,
        lease: Lease,
    ) -> None:
        self._permits = permits
        self._verifier = verifier
        self._builders = builders
        self._journal = journal
        self._clock = clock
        self._allowed_uids = allowed_uids
        self._public_key = public_key
        self._checkpoint = checkpoint
        self._server: UnixServer | None = None
        self._tasks = Tasks(within)
        self._syncing: asyncio.Task[None] | None = None
        self._unsynced = False
        self._listing = listing
        self._lease = lease
        self._log = structlog.get_logger().bind(component=COMPONENT)
        self.refusals = refusals

    async def start(self, path: Path) -> None:
        """Listen on `path`, replacing the socket of a dead predecessor.  Raises `ConfigError`."""
        self._server = UnixServer(
            path,
            self._serve,
            self._refused_peer,
            uids=self._allowed_uids,
            connections=MAX_CONNECTIONS,
            limit=signing.MAX_FRAME + signing.LENGTH.size,
            per_second=READS_PER_SECOND,
            within=self._tasks,
        )
        await self._server.start()

    async def stop(self) -> None:
        """Stop listening and close every connection."""
        if self._server is not None:
            await self._server.stop()
        await self._tasks.settled()

    def use(self, venue: str, builder: Requests, public_key: bytes) -> None:
        """Sign for `venue` with another key from the next request on."""
        self._builders = {**self._builders, venue: builder}
        self._public_key = public_key

    def _refused_peer(self, peer: Peer) -> None:
        self._refuse("PEER", "not allowed, or pushed out by a newer connection", peer, "connection")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: Peer) -> None:
        at_once(writer.transport)
        try:
            while True:
                (length,) = signing.LENGTH.unpack(await reader.readexactly(signing.LENGTH.size))
                request = signing.decode_request(await reader.readexactly(signing.frame_length(length)))
                writer.write(signing.encode_frame(self.answer(request, peer, await self._opened(request))))
                await writer.drain()
        except Malformed as exc:
            self._refuse(exc.code, exc.text, peer, "frame")
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the peer is gone; whatever was signed for it is used

    async def _opened(self, request: signing.Request) -> Opened | None:
        """What an order's request holds, once its sessions are listed; None leaves it to `answer` to say what is wrong.

        Requests come by the socket and lists by the bus: a new session's listing may still be on its way.
        """
        if not isinstance(request, signing.SignOrder):
            return None
        try:
            opened = self._open(request)
            for credential in (opened.asker, opened.decision.credential, opened.intent.credential):
                await self._listing(credential, ORDERS)
        except TallystickError:
            return None
        return opened

    def _open(self, request: signing.SignOrder) -> Opened:
        """Raises `Malformed` or `Unverified`."""
        asker = self._verifier.credential(request.credential)
        try:
            verify(asker.session_key, request.signature, request.spoken())
        except BadSignature as exc:
            raise Unverified("FRAME_SIGNATURE", f"not signed by the session of {asker.component}") from exc
        decision = self._verifier.open(request.subject, ORDERS, request.payload)
        if decision.subject.kind != "order.decision":
            raise Denied("PERMIT_ISSUER", f"a permit is the gateway's decision, not {decision.subject.kind}")
        intent = self._verifier.open(intent_subject(decision.subject).text, ORDERS, request.intent)
        return Opened(asker, decision, intent)

    def answer(self, request: signing.Request, peer: Peer, opened: Opened | None = None) -> signing.Reply:
        """The reply to one request of `peer`; refusals are replies.  `opened`: what it holds, where it was opened before."""
        try:
            if isinstance(request, signing.StatusRequest):
                return signing.Status(
                    id=request.id,
                    component=COMPONENT,
                    boot=self._permits.boot,
                    trust_root=self._permits.trust.number,
                    used=self._permits.used,
                    public_key=self._public_key,
                )
            if isinstance(request, signing.SignOrder):
                signed = self._order(request, opened)
            else:
                signed = self._always(request, peer)
        except TallystickError as exc:
            self._refuse_request(exc, request, peer, opened)
            return signing.Refused(id=request.id, code=exc.code, text=exc.text)
        return signing.Signed(id=request.id, **msgspec.structs.asdict(signed))

    def _order(self, request: signing.SignOrder, opened: Opened | None) -> SignedRequest:
        opened = opened or self._open(request)
        now = self._clock()
        self._permits.require_execution(opened.asker, now)
        # Before the permit is used: it may serve once there is a lease again.
        self._lease.require_live(now)
        allowed = self._permits.authorize(opened.decision, request.decision_id, opened.intent, now)
        self._checkpoint("permit")
        builder = self._builder(allowed.venue)
        self._journal.append(
            ORDER,
            allowed.venue,
            allowed.record.symbol,
            client_order_id=allowed.order.client_order_id,
            decision_id=id_text(allowed.decision_id),
            spent=Spent(now, allowed.account, allowed.counted),
        )
        # A crash here leaves an order that was counted and never signed: it cannot be used again, and
        # execution finds nothing at the venue once the permit has expired.
        self._checkpoint("journalled")
        signed = builder.order(allowed.record, allowed.order)
        # A crash here or before the reply is sent: a signature that nobody has.
        self._checkpoint("order-signed")
        self._sync_soon()
        return signed

    def _always(
        self,
        request: signing.SignCancel | signing.SignCancelAll | signing.SignQuery | signing.SignOpenOrders,
        peer: Peer,
    ) -> SignedRequest:
        record = self._permits.trust.instrument(request.venue, request.symbol)
        builder = self._builder(request.venue)
        name = ""
        if isinstance(request, signing.SignCancel | signing.SignQuery):
            venues.adapter(self._permits.trust.venues[request.venue].kind).require_own(request.client_order_id)
        match request:
            case signing.SignCancel(client_order_id=name):
                op, signed = "cancel", builder.cancel(record, name)
            case signing.SignCancelAll():
                op, signed = "cancel_all", builder.cancel_all(record)
            case signing.SignQuery(client_order_id=name):
                op, signed = "query", builder.query(record, name)
            case signing.SignOpenOrders():
                op, signed = "open_orders", builder.open_orders(record)
            case _:
                assert_never(request)
        try:
            self._journal.append(op, request.venue, request.symbol, client_order_id=name)
        except Denied as exc:
            # A full disk must not keep the kill switch from its way; people hear of it.
            self._refuse(exc.code, f"signed without its line: {exc.text}", peer, op)
        else:
            self._sync_soon()
        return signed

    def _builder(self, venue: str) -> Requests:
        builder = self._builders.get(venue)
        if builder is None:
            raise Denied("VENUE", f"custody has no account at {venue[:48]!r}")
        return builder

    def _refuse_request(
        self, error: TallystickError, request: signing.Request, peer: Peer, opened: Opened | None
    ) -> None:
        """Keep and tell who asked for what."""
        op, known = str(type(request).__struct_config__.tag), {}
        match request:
            case signing.SignOrder():
                known = {"asker": self._asker(request), "about": request.subject}
                known["decision_id"] = id_text(request.decision_id)
                for event in () if opened is None else opened.decision.events:
                    if isinstance(event, Decision) and event.id == request.decision_id and event.permit is not None:
                        known["client_order_id"] = event.permit.order.client_order_id
            case signing.SignCancel() | signing.SignQuery():
                about = f"{request.venue} {request.symbol}"
                known = {"about": about, "client_order_id": request.client_order_id}
            case signing.SignCancelAll() | signing.SignOpenOrders():
                known = {"about": f"{request.venue} {request.symbol}"}
        self._refuse(error.code, error.text, peer, op, **known)

    def _asker(self, request: signing.SignOrder) -> str:
        """The session that signed the request; "" where none did."""
        try:
            asker = self._verifier.credential(request.credential)
            verify(asker.session_key, request.signature, request.spoken())
        except (TallystickError, BadSignature):
            return ""
        return f"{asker.component}/{asker.boot.hex()[:8]}"

    def _refuse(self, code: str, text: str, peer: Peer, op: str, **known: str) -> None:
        kept = self.refusals.note(code, text, peer, op, **known)
        if kept is not None:
            self._log.warning("refused", code=code, text=str(kept))

    def _sync_soon(self) -> None:
        """One fsync at a time, off the order's way; what gathers meanwhile shares the next one."""
        self._unsynced = True
        if self._syncing is None or self._syncing.done():
            self._syncing = self._tasks.start(self._sync(), "sync")

    async def _sync(self) -> None:
        while self._unsynced:
            self._unsynced = False
            try:
                await asyncio.to_thread(self._journal.sync)
            except OSError as exc:
                self._refuse("JOURNAL", f"fsync: {exc.strerror}", OURSELVES, "sync")
