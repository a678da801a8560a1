"""A fully compromised execution process against the real custody: its own session, socket and messages, a real token.

It holds execution's session key, sees every permit and intent, and speaks the signing protocol as it likes.  Each
attempt is refused, signed by no key, and told to people by its code and by who asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from yarl import URL

from tallystick import venues
from tallystick.components.custody.main import Custody
from tallystick.components.execution.custody import CustodyClient, NotSigned
from tallystick.runtime.bus.tasks import Tasks
from tallystick.runtime.deployment.service import ServiceContext
from tallystick.runtime.keys.hsm import Token
from tallystick.runtime.unix_socket import connect
from tallystick.schemas import signing
from tallystick.schemas.nats_jwt import SessionKey, encode_jwt, user_claims
from tallystick.schemas.orders import Decision
from tallystick.schemas.registry import encode_events
from tallystick.schemas.seal import ChainWriter
from tallystick.schemas.security import Notice
from tallystick.schemas.signing import SOCKET
from tests.support import world
from tests.support.bus import TestBus, now_s, running_bus
from tests.support.runtime import SoftwareSource
from tests.support.trading import XRP, Floor, trading

INTENT, DECISION = "order.intent.alpha.paper.XRP-ETH", "order.decision.alpha.paper.XRP-ETH"
SIGNATURES: list[bytes] = []
QUESTION = re.compile(rb"timestamp=[0-9]{13}&recvWindow=1000")


@pytest.fixture(autouse=True)
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every signature that a token makes in this process is counted."""
    SIGNATURES.clear()
    real = Token.signer

    def signer(token: Token, key: bytes) -> Any:
        made = real(token, key)
        sign = made.sign

        class Counted:
            public = made.public

            def sign(self, data: bytes) -> bytes:
                # Custody's own question about its key.
                if not QUESTION.fullmatch(data):
                    SIGNATURES.append(data)
                return sign(data)

        return Counted()

    monkeypatch.setattr(Token, "signer", signer)


Send = Callable[[signing.Signed], Awaitable[tuple[int, bytes]]]


class Thief:
    """Execution in other hands: its session, what it read, and custody's socket."""

    def __init__(self, floor: Floor, context: ServiceContext) -> None:
        self.floor = floor
        self.context = context
        self.custody = CustodyClient(floor.deployment.seat("custody") / SOCKET, Tasks())
        self.number = 0
        self.chains: dict[str, ChainWriter] = {}

    def sealed(self, component: str, subject: str, *events: Any) -> bytes:
        """As the component itself seals: its session is the test's."""
        context = self.floor.people.get(component, self.context)
        if component not in self.chains:
            session = context.session
            self.chains[component] = ChainWriter(session.credential, session.key, "ORDERS")
        kind = subject.split(".alpha", maxsplit=1)[0]
        return self.chains[component].seal([(subject, encode_events(kind, events))], time.time_ns())[0][1]

    def permit(self, **order: Any) -> signing.SignOrder:
        """What it may ask for, once: the strategy's intent and the gateway's permit, both genuine."""
        return self.asking(self.floor.decision(**order))

    def asking(self, decision: Decision, by: str = "gateway", **changes: Any) -> signing.SignOrder:
        asked = self.floor.asked[decision.id]
        made = {
            "payload": self.sealed(by, DECISION, decision),
            "intent": self.sealed("strategy-alpha", INTENT, asked),
            "decision_id": decision.id,
            "subject": DECISION,
            **changes,
        }
        return self.signed(**made)

    def signed(self, **made: Any) -> signing.SignOrder:
        session = self.context.session
        asked = (made["decision_id"], made["subject"], made["payload"], made["intent"])
        return signing.ask_for(1, *asked, session.credential.text, session.key)

    async def ask(self, request: signing.Request) -> signing.Signed:
        return await self.custody.sign(lambda number: msgspec.structs.replace(request, id=number))

    async def refused(self, request: signing.Request) -> str:
        """The code of the refusal; the token signed nothing."""
        before = len(SIGNATURES)
        with pytest.raises(NotSigned) as refusal:
            await self.ask(request)
        assert len(SIGNATURES) == before, "refused, and signed all the same"
        return refusal.value.code

    async def raw(self, *frame: object) -> bytes:
        """Send a frame that may be none; what comes back before custody closes."""
        before = len(SIGNATURES)
        reader, writer = await connect(self.floor.deployment.seat("custody") / SOCKET, 1 << 17)
        data = msgspec.msgpack.encode(frame)
        writer.write(signing.LENGTH.pack(len(data)) + data)
        answer = await asyncio.wait_for(reader.read(), 20)
        writer.close()
        assert len(SIGNATURES) == before
        return answer

    @contextlib.asynccontextmanager
    async def venue(self) -> AsyncIterator[Send]:
        """Sends a signed request to the venue: whatever it likes, as often as it likes."""
        tls = venues.client_tls(self.floor.deployment.ca)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls)) as http:

            async def send(request: signing.Signed) -> tuple[int, bytes]:
                url, headers = URL(request.url, encoded=True), dict(request.headers)
                async with http.request(request.method, url, headers=headers, data=request.body or None) as answer:
                    return answer.status, await answer.read()

            yield send


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[TestBus]:
    with running_bus(tmp_path / "bus") as running:
        yield running


@pytest.fixture
async def thief(bus: TestBus, tmp_path: Path) -> AsyncIterator[Thief]:
    async with trading(bus, tmp_path / "floor") as floor:
        context = await floor.desk.context("execution", deployment=floor.deployment)
        context.subscribe("control.breaker.>", lambda _: None)
        context.open()
        stolen = Thief(floor, context)
        floor.people["execution"] = context
        await asyncio.sleep(0.3)  # listed, and the breaker was heard
        yield stolen
        await stolen.custody.close()


def told(floor: Floor, code: str) -> list[str]:
    return [n.text for n in floor.notices if isinstance(n, Notice) and n.code == code]


def changed(request: signing.SignOrder, old: bytes, new: bytes) -> dict[str, Any]:
    """The genuine permit with some of its bytes replaced, under execution's own signature."""
    assert request.payload.count(old) == 1, old
    return {
        "decision_id": request.decision_id,
        "subject": request.subject,
        "payload": request.payload.replace(old, new),
        "intent": request.intent,
    }


async def test_nothing_but_the_permitted_order_is_signed_and_each_attempt_is_told(thief: Thief) -> None:
    floor = thief.floor
    tried: dict[str, list[str]] = {}

    async def attempt(what: str, request: signing.Request, *codes: str) -> None:
        tried[what] = [await thief.refused(request)]
        assert tried[what][0] in codes, (what, tried[what])

    # Another symbol, side, price, quantity or account: in the gateway's own bytes, or in a decision of its own.
    genuine = thief.permit(quantity="1234", price="0.0010017")
    for what, old, new in (
        ("quantity", b"1234", b"9234"),
        ("price", b"0.0010017", b"0.0012017"),
        ("side", b"BUY", b"SEL"),
        ("symbol", b"XRPETH", b"BTCETH"),
        ("account", b"\xa4main", b"\xa4mine"),
    ):
        await attempt(what, thief.signed(**changed(genuine, old, new)), "MERKLE_ROOT", "SIGNATURE", "STATEMENT_ROOT")
        decision = floor.decision()
        assert decision.permit is not None
        fields = {"symbol": "BTCETH", "side": "SELL", "quantity": "999", "price": "0.0012017"}
        order = msgspec.structs.replace(decision.permit.order, **({what: fields[what]} if what in fields else {}))
        permit = msgspec.structs.replace(
            decision.permit, order=order, account="mine" if what == "account" else decision.permit.account
        )
        mine = msgspec.structs.replace(decision, permit=permit)
        await attempt(f"{what}, self-made", thief.asking(mine, by="execution"), "SCOPE")
        # Even with the gateway's help: the strategy asked for something else.
        forged = {"account": "VENUE_ACCOUNT", "symbol": "FIELD_MISMATCH"}.get(what, "INTENT_DIFFERS")
        await attempt(f"{what}, with the gateway", thief.asking(mine), forged)
    await attempt(
        "another instrument",
        thief.asking(floor.decision(), subject="order.decision.alpha.paper.BTC-USDT"),
        "MERKLE_ROOT",
    )

    # Twice the same, as it was and under a second decision on the same intent.
    once = floor.decision(price="0.0005001", time_in_force="IOC")
    request = thief.asking(once)
    signed = await thief.ask(request)
    assert "quantity=10" in signed.body
    assert len(SIGNATURES) == 1
    await attempt("twice the same", request, "PERMIT_USED")
    second = msgspec.structs.replace(once, id=floor.people["gateway"].new_id())
    floor.asked[second.id] = floor.asked[once.id]
    again = thief.asking(second, intent=request.intent)
    await attempt("a second decision on one intent", again, "PERMIT_USED", "INTENT_HASH")

    # Expired; for another boot of custody; asked for with the session of another execution.
    await attempt("expired", thief.asking(floor.decision(lifetime=-0.001)), "PERMIT_EXPIRED")
    await attempt("for too long", thief.asking(floor.decision(lifetime=60)), "PERMIT_LIFETIME")
    permitted = floor.decision()
    assert permitted.permit is not None
    elsewhere = msgspec.structs.replace(permitted.permit, audience=bytes(16))
    await attempt(
        "another audience", thief.asking(msgspec.structs.replace(permitted, permit=elsewhere)), "PERMIT_AUDIENCE"
    )
    other, token = (
        world.key("another execution"),
        await SoftwareSource(floor.bus, "execution", 60).obtain(world.key("another execution"), bytes(range(16))),
    )
    fresh = thief.permit()
    asked = (fresh.decision_id, fresh.subject, fresh.payload, fresh.intent)
    await attempt("another execution", signing.ask_for(1, *asked, token, other), "SESSION_UNLISTED")
    await attempt("not signed by its session", msgspec.structs.replace(fresh, signature=bytes(64)), "FRAME_SIGNATURE")

    # A credential of the gateway that is forged, of another component, old, or on no list.
    gateway = world.key("role gateway")
    for what, component, role, age, codes in (
        ("a forged gateway credential", "gateway", world.key("forger"), 0, ("ROLE_KEY",)),
        ("its own credential", "execution", world.key("role execution"), 0, ("SCOPE",)),
        ("an old gateway credential", "gateway", gateway, 61, ("CREDENTIAL_EXPIRED",)),
        ("an unlisted gateway session", "gateway", gateway, 0, ("SESSION_UNLISTED",)),
    ):
        decision = floor.decision()
        session = world.key(what)
        payload = resealed(floor, decision, component, minted(floor, component, role, session, age), session)
        await attempt(what, thief.asking(decision, payload=payload), *codes)

    # An altered record of the instrument.
    permitted = floor.decision()
    assert permitted.permit is not None
    forged_record = msgspec.structs.replace(permitted.permit, instrument_hash=bytes(32))
    await attempt(
        "an altered instrument record",
        thief.asking(msgspec.structs.replace(permitted, permit=forged_record)),
        "INSTRUMENT_HASH",
    )

    # Somebody else's order, account or venue.
    for name in ("web_0123456789abcdef", "x-broker-12345678", "ts" + "0" * 31, "ts" + "0" * 33, "TS" + "0" * 32):
        for kind in (signing.SignCancel, signing.SignQuery):
            theirs = kind(id=1, venue="paper", symbol=XRP, client_order_id=name)
            await attempt(f"{kind.__name__} {name}", theirs, "ORDER_ID_NOT_OURS")
    await attempt("another venue", signing.SignOpenOrders(id=1, venue="mine", symbol=XRP), "UNKNOWN_INSTRUMENT")
    await attempt("another market", signing.SignCancelAll(id=1, venue="paper", symbol="A/B"), "UNKNOWN_INSTRUMENT")

    # A raw request, a withdrawal, a query of balances, the user stream: the protocol has no word for them.
    for what, frame in {
        "a raw request": ("sign", 1, b"symbol=XRPETH&side=SELL&timestamp=1"),
        "a withdrawal": ("withdraw", 1, "paper", "ETH", "100", "0xabc"),
        "a query of balances": ("account", 1, "paper"),
        "the user stream": ("user_stream", 1, "paper"),
        "more fields": ("open_orders", 1, "paper", XRP, "&recvWindow=60000"),
    }.items():
        assert await thief.raw(*frame) == b"", what
        tried[what] = ["FRAME"]

    # Nothing reached the venue, one signature was made, and people hear of each attempt by code and by who asked.
    assert len(SIGNATURES) == 1
    assert floor.posted() == []
    wanted: dict[str, int] = {}
    for (code,) in tried.values():
        wanted[code] = wanted.get(code, 0) + 1
    await floor.until(lambda: counted_codes(floor) == wanted, timeout=10)
    orders = " ".join(told(floor, "ORDER_REFUSED"))
    assert f"by execution/{thief.context.boot.hex()[:8]}, pid " in orders
    assert "order about order.decision.alpha.paper.XRP-ETH decision " in orders
    assert "cancel about paper XRP/ETH order web_0123456789abcdef" in " ".join(told(floor, "SIGNING_REFUSED"))


def counted_codes(floor: Floor) -> dict[str, int]:
    """Refusals by code, as people were told."""
    counts: dict[str, int] = {}
    for text in told(floor, "ORDER_REFUSED") + told(floor, "SIGNING_REFUSED"):
        for part in text.partition(";")[0].split(", "):
            code, _, number = part.partition("=")
            counts[code] = counts.get(code, 0) + int(number)
    return counts


def minted(floor: Floor, component: str, role: SessionKey, session: SessionKey, age: int) -> str:
    """A credential of `component` for `session`, signed by `role`, given for a minute so many seconds ago."""
    account, now = floor.bus.keys.components[component].account, now_s() - age
    claims = user_claims(component, bytes(16), session.public, role.public, account, now, now + 60, "1")
    return encode_jwt(role, "A", claims)


def resealed(floor: Floor, decision: Decision, component: str, credential: str, session: SessionKey) -> bytes:
    """The decision as a session with this credential would seal it."""
    names = {
        "text": credential,
        "digest": hashlib.sha256(credential.encode()).digest(),
        "component": component,
        "boot": bytes(16),
        "session_key": session.public,
    }
    stolen = msgspec.structs.replace(floor.people["gateway"].session.credential, **names)
    events = encode_events("order.decision", [decision])
    return ChainWriter(stolen, session, "ORDERS").seal([(DECISION, events)], time.time_ns())[0][1]


async def test_nothing_is_signed_on_old_words_after_a_trip_or_by_the_next_custody(thief: Thief) -> None:
    floor = thief.floor
    kept = thief.asking(floor.decision(lifetime=9))
    # A breaker that opened after the permit was given, whatever scope.
    for scope in ("all", "strategy-alpha", "venue-paper"):
        floor.trip(scope)
        await floor.until(lambda scope=scope: scope in custody(floor)._permits.tripped())  # type: ignore[misc]
        assert await thief.refused(thief.permit()) == "BREAKER_TRIPPED"
    floor.trip()
    await floor.until(lambda: not custody(floor)._permits.tripped())
    await thief.ask(thief.permit())

    # The breaker says nothing any more.
    floor.beating = False
    await asyncio.sleep(1.1)
    assert await thief.refused(thief.permit()) == "BREAKER_HEARTBEAT_MISSING"
    floor.beating = True
    floor.say()
    await asyncio.sleep(0.2)
    await thief.ask(thief.permit())

    # The authority says nothing any more.
    floor.listing = False
    await asyncio.sleep(3.1)
    assert await thief.refused(thief.permit()) == "SESSIONS_STALE"
    floor.listing = True
    floor.say()
    await asyncio.sleep(0.2)
    signed = thief.permit()
    await thief.ask(signed)

    # Custody starts anew: neither what was signed before nor what was kept for that moment.
    before = len(SIGNATURES)
    await floor.gone(floor.people["custody"])
    await floor.custody()
    await asyncio.sleep(0.3)
    for request in (signed, kept):
        assert await thief.refused(request) in {"PERMIT_AUDIENCE", "STALE"}
    # Not even under a fresh permit for the new custody, which a stolen gateway would give it.
    asked, fresh = floor.asked[signed.decision_id], floor.decision()
    assert fresh.permit is not None
    order = msgspec.structs.replace(fresh.permit.order, client_order_id=f"ts{asked.id.hex()}")
    permit = msgspec.structs.replace(fresh.permit, order=order)
    leaf = thief.context.verifier.open(INTENT, "ORDERS", signed.intent).leaf
    again = msgspec.structs.replace(fresh, intent_id=asked.id, intent_hash=leaf, permit=permit)
    floor.asked[again.id] = asked
    assert await thief.refused(thief.asking(again, intent=signed.intent)) == "PERMIT_USED"
    assert len(SIGNATURES) == before
    wanted = {"BREAKER_TRIPPED", "BREAKER_HEARTBEAT_MISSING", "SESSIONS_STALE", "PERMIT_USED"}
    await floor.until(lambda: wanted <= counted_codes(floor).keys(), timeout=10)


def custody(floor: Floor) -> Custody:
    component = floor.running[floor.people["custody"].boot]
    assert isinstance(component, Custody)
    return component


async def test_a_signed_request_sent_again_is_taken_within_its_second_and_never_after(thief: Thief) -> None:
    """What remains to it: the venue's rule on client order ids holds among open orders only."""
    async with thief.venue() as send:
        signed = await thief.ask(thief.permit(price="0.0013002", time_in_force="IOC"))
        answers = [await send(signed) for _ in range(2)]
        assert [status for status, _ in answers] == [200, 200]
        late = await thief.ask(thief.permit(price="0.0013002", time_in_force="IOC"))
        until = late.signed_at + 1_000_000_000
        await asyncio.sleep((until - time.time_ns()) / 1e9 + 0.01)
        for request in (signed, late):
            status, body = await send(request)
            assert (status, b"-1021" in body) == (400, True), body
        # A request that rests at the venue is not taken a second time at all.
        resting = await thief.ask(thief.permit())
        assert (await send(resting))[0] == 200
        assert (await send(resting))[0] == 400
        # Nor does it help to ask with a longer validity, or another time: both are signed.
        fresh = await thief.ask(thief.permit())
        for old, new in (("recvWindow=1000", "recvWindow=60000"), ("timestamp=1", "timestamp=2")):
            assert old in fresh.body
            status, body = await send(msgspec.structs.replace(fresh, body=fresh.body.replace(old, new)))
            assert (status, b"-1022" in body or b"-1021" in body) == (400, True), body


async def test_what_is_signed_for_it_reads_no_balance_opens_no_stream_and_withdraws_nothing(thief: Thief) -> None:
    """Binance signs parameters, not the path: each signed request is sent wherever else it might be good for."""
    one = {"venue": "paper", "symbol": XRP}
    mine = "ts" + "0" * 32
    async with thief.venue() as send:
        for request in (
            thief.permit(price="0.0013002", time_in_force="IOC"),
            thief.permit(),
            signing.SignCancel(id=1, client_order_id=mine, **one),
            signing.SignQuery(id=1, client_order_id=mine, **one),
            signing.SignCancelAll(id=1, **one),
            signing.SignOpenOrders(id=1, **one),
        ):
            signed = await thief.ask(request)
            fields = signed.body or signed.url.partition("?")[2]
            host = signed.url.partition("/api")[0]
            for method, path in (
                ("GET", "/api/v3/account"),
                ("POST", "/sapi/v1/capital/withdraw/apply"),
                ("GET", "/sapi/v1/capital/config/getall"),
                ("GET", "/sapi/v1/account/apiRestrictions"),
                ("POST", "/api/v3/userDataStream"),
            ):
                for url, body in ((f"{host}{path}?{fields}", ""), (f"{host}{path}", fields)):
                    other = msgspec.structs.replace(signed, method=method, url=url, body=body)
                    status, answer = await send(other)
                    assert status >= 400, (method, path, answer)
                    assert b"free" not in answer
        # The name of the API key alone, which stands in each request's header, without any signature.
        signed = await thief.ask(signing.SignOpenOrders(id=1, **one))
        host = signed.url.partition("/api")[0]
        named = msgspec.structs.replace(signed, method="POST", url=f"{host}/api/v3/userDataStream", body="")
        status, answer = await send(named)
        assert (status, b"-2015" in answer) == (401, True), answer
