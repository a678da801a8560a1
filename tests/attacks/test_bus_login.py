"""Somebody tries to log in to the broker, or to lure a component into logging in to something else."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import ssl
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from nats.errors import Error as NatsError
from nats.errors import TimeoutError as NatsTimeout

from tallystick.infra.nats.connz import CONNZ_REQUEST, connz_mismatches
from tallystick.schemas.errors import CouldNotVerify, TallystickError, Unverified
from tallystick.schemas.nats_jwt import Claims, SessionKey, decode_credential, encode_jwt, encode_key
from tests.support.bus import Authority509, Connection, TestBus, now_s
from tests.support.waiting import until
from tests.support.world import key

ME = "strategy-alpha"
MINE = "order.intent.alpha.paper.XRP-ETH"
SESSION = key(f"session {ME}")
THIEF = key("thief")
HEADER = b'{"typ":"JWT","alg":"ed25519-nkey"}'


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _token(claims: Claims, signer: SessionKey, header: bytes = HEADER) -> str:
    signed = f"{_b64(header)}.{_b64(msgspec.json.encode(claims))}"
    return f"{signed}.{_b64(signer.sign(signed.encode()))}"


def _with(claims: Claims, **nats: object) -> Claims:
    return msgspec.structs.replace(claims, nats={**claims.nats, **nats})


def _none(bus: TestBus) -> str:
    return ".".join((_b64(b'{"typ":"JWT","alg":"none"}'), _b64(msgspec.json.encode(bus.claims(ME, SESSION))), ""))


def _wrong_role(bus: TestBus) -> str:
    other = key("role strategy-beta")
    return _token(msgspec.structs.replace(bus.claims(ME, SESSION), iss=encode_key("A", other.public)), other)


def _own_account_key(bus: TestBus) -> str:
    identity = key(f"account {ME}")
    open_to_all = {"type": "user", "version": 2, "pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1}
    claims = msgspec.structs.replace(bus.claims(ME, SESSION), iss=encode_key("A", identity.public), nats=open_to_all)
    return _token(claims, identity)


ROLE = key(f"role {ME}")
FORGERIES: dict[str, tuple[Callable[[TestBus], str], SessionKey]] = {
    "expired": (lambda bus: bus.token(ME, SESSION, issued_s=now_s() - 100, lifetime_s=50), SESSION),
    "stolen without its key": (lambda bus: bus.token(ME, SESSION), THIEF),
    "signed by nobody's key": (lambda bus: _token(bus.claims(ME, SESSION), THIEF), SESSION),
    "signed by another role": (_wrong_role, SESSION),
    "alg none": (_none, SESSION),
    "alg none, signed": (lambda bus: _token(bus.claims(ME, SESSION), ROLE, b'{"typ":"JWT","alg":"none"}'), SESSION),
    "alg HS256": (lambda bus: _token(bus.claims(ME, SESSION), ROLE, b'{"typ":"JWT","alg":"HS256"}'), SESSION),
    "bearer": (lambda bus: _token(_with(bus.claims(ME, SESSION), bearer_token=True), ROLE), THIEF),
    "with rights of its own": (lambda bus: _token(_with(bus.claims(ME, SESSION), pub={"allow": [">"]}), ROLE), SESSION),
    "for account CORE": (
        lambda bus: _token(_with(bus.claims(ME, SESSION), issuer_account=encode_key("A", bus.keys.core_account)), ROLE),
        SESSION,
    ),
    "for another component's account": (
        lambda bus: _token(
            _with(bus.claims(ME, SESSION), issuer_account=encode_key("A", bus.keys.components["gateway"].account)), ROLE
        ),
        SESSION,
    ),
    "signed by the account's own key": (_own_account_key, SESSION),
}


async def login(bus: TestBus, token: str, signer: SessionKey = SESSION, **kw: object) -> Connection:
    return await bus.connect(token, signer, inbox=f"_INBOX_{ME}", **{"certificate": ME, **kw})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", FORGERIES)
async def test_a_token_that_does_not_hold_is_refused(bus: TestBus, name: str) -> None:
    make, signer = FORGERIES[name]

    async with bus.connected("root") as (root,):
        before = await bus.stored(root)
        with pytest.raises(NatsError, match="Authorization Violation"):
            await login(bus, make(bus), signer)
        assert await bus.stored(root) == before


async def test_the_same_login_without_the_forgery_succeeds(bus: TestBus) -> None:
    client = await login(bus, bus.token(ME, SESSION))
    assert json.loads((await client.request(MINE, b"x")).data)["stream"] == "ORDERS"
    await client.close()


@pytest.mark.parametrize(
    "make",
    [
        lambda bus: _token(bus.claims(ME, SESSION), ROLE, b'{"typ":"JWT","alg":"ed25519"}'),
        lambda bus: _token(_with(bus.claims(ME, SESSION), tags=["boot:" + "0" * 32, "admin"]), ROLE),
    ],
    ids=["the algorithm's old name", "more tags"],
)
async def test_what_the_broker_takes_from_a_role_key_beyond_our_form_no_reader_takes(
    bus: TestBus, make: Callable[[TestBus], str]
) -> None:
    token = make(bus)

    await (await login(bus, token)).close()
    with pytest.raises(TallystickError):
        decode_credential(token)


async def test_a_connection_ends_with_its_token(bus: TestBus) -> None:
    # With less than a second left, a busy machine would not be logged in before.
    client = await login(bus, bus.token(ME, SESSION, issued_s=now_s() - 100, lifetime_s=103))
    await until(lambda: client.is_closed, "the end of the connection", 5)


async def test_the_activation_key_reaches_nothing(bus: TestBus) -> None:
    activation = key("activation")

    async with bus.connected("root") as (root,):
        before = await bus.stored(root)
        claims = _with(bus.claims(ME, SESSION), issuer_account=encode_key("A", bus.keys.core_account))
        claims = msgspec.structs.replace(claims, iss=encode_key("A", activation.public))
        client = await login(bus, encode_jwt(activation, "A", claims))
        for subject in (MINE, "$JS.API.INFO", "$JS.API.STREAM.PURGE.MARKET", "x"):
            await client.publish(subject, b"")
            assert "permissions violation for publish" in await client.refused()
        await client.subscribe(">")
        assert "permissions violation for subscription" in await client.refused()
        await client.close()
        assert await bus.stored(root) == before


async def test_the_break_glass_key_is_no_component(bus: TestBus) -> None:
    admin = key("admin")
    claims = msgspec.structs.replace(bus.claims(ME, SESSION), iss=encode_key("A", admin.public))
    with pytest.raises(NatsError, match="Authorization Violation"):
        await login(bus, encode_jwt(admin, "A", claims))


# ---------------------------------------------------------------- the connection


async def test_the_broker_does_not_talk_in_plain_text(bus: TestBus) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", bus.server.port)
    # No greeting: no server id, no nonce.
    writer.write(b'CONNECT {"verbose":false}\r\nPING\r\n')
    said = await asyncio.wait_for(reader.read(1024), 20)
    assert b"INFO" not in said
    assert b"PONG" not in said
    writer.close()


def _versions(bus: TestBus, lowest: ssl.TLSVersion, highest: ssl.TLSVersion) -> ssl.SSLContext:
    context = bus.ca.client_context("old-client")[0]
    context.minimum_version, context.maximum_version = lowest, highest
    return context


async def test_tls_1_2_is_refused(bus: TestBus) -> None:
    context = _versions(bus, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2)
    with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
        await login(bus, bus.token(ME, SESSION), tls=context)


async def test_no_client_certificate_is_refused(bus: TestBus) -> None:
    context = ssl.create_default_context(cafile=str(bus.ca.ca_file))
    with pytest.raises((ssl.SSLError, NatsError), match=r"CERTIFICATE_REQUIRED|unexpected eof"):
        await login(bus, bus.token(ME, SESSION), tls=context)


async def test_a_client_certificate_of_another_authority_is_refused(bus: TestBus, tmp_path: Path) -> None:
    context = Authority509(tmp_path, name="another ca").client_context(ME)[0]
    context.load_verify_locations(str(bus.ca.ca_file))
    with pytest.raises((ssl.SSLError, NatsError, OSError)):
        await login(bus, bus.token(ME, SESSION), tls=context)
    log = (bus.folder / "nats.log").read_text()
    assert "certificate signed by unknown authority" in log


async def test_a_servers_certificate_is_none_of_a_client(bus: TestBus) -> None:
    file, pem, _ = bus.ca.issue("not-a-client", server=True)
    (bus.folder / "not-a-client.key").write_bytes(pem)
    context = ssl.create_default_context(cafile=str(bus.ca.ca_file))
    context.load_cert_chain(file, bus.folder / "not-a-client.key")
    with pytest.raises((ssl.SSLError, NatsError, OSError)):
        await login(bus, bus.token(ME, SESSION), tls=context)


# ---------------------------------------------------------------- a broker that is none


class FakeBroker:
    """Listens where a broker should be, greets with `nonce`, keeps what clients send."""

    def __init__(self, nonce: str, tls: ssl.SSLContext | None) -> None:
        self._nonce = nonce
        self._tls = tls
        self.heard = b""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        info = {
            "server_id": "N", "version": "2.15.1", "proto": 1, "max_payload": 1048576, "auth_required": True,
            "nonce": self._nonce, "headers": True,
        }  # fmt: skip
        writer.write(f"INFO {json.dumps(info)}\r\n".encode())
        try:
            while data := await asyncio.wait_for(reader.read(4096), 1):
                self.heard += data
        except (TimeoutError, OSError):
            pass
        finally:
            writer.close()

    async def lure(self, bus: TestBus, token: str, signer: object) -> BaseException | None:
        """What the client raises when it logs in here."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        try:
            port = server.sockets[0].getsockname()[1]
            await login(bus, token, signer, url=f"tls://127.0.0.1:{port}", connect_timeout=1)  # type: ignore[arg-type]
        except (NatsError, TallystickError, OSError, TimeoutError) as exc:
            return exc
        finally:
            server.close()
        return None


class CountingKey:
    """A session key that remembers what it was made to sign."""

    def __init__(self, inner: SessionKey) -> None:
        self._inner = inner
        self.public = inner.public
        self.signed: list[bytes] = []

    def sign(self, data: bytes) -> bytes:
        self.signed.append(data)
        return self._inner.sign(data)


def _server_tls(authority: Authority509, folder: Path) -> ssl.SSLContext:
    file, pem, _ = authority.issue("broker-twin", server=True)
    (folder / "twin.key").write_bytes(pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file, folder / "twin.key")
    return context


async def test_a_plaintext_broker_gets_neither_token_nor_signature(bus: TestBus) -> None:
    broker, signer = FakeBroker("q0jGWeZnbVBqRw8", None), CountingKey(SESSION)
    token = bus.token(ME, SESSION)
    assert await broker.lure(bus, token, signer) is not None
    # A TLS ClientHello is all that it hears.
    assert broker.heard[:2] == b"\x16\x03"
    assert token.encode() not in broker.heard
    assert signer.signed == []


async def test_a_broker_of_another_certificate_authority_gets_neither(bus: TestBus, tmp_path: Path) -> None:
    tls = _server_tls(Authority509(tmp_path / "pki", name="another ca"), tmp_path)
    broker, signer = FakeBroker("q0jGWeZnbVBqRw8", tls), CountingKey(SESSION)
    assert isinstance(await broker.lure(bus, bus.token(ME, SESSION), signer), ssl.SSLCertVerificationError)
    assert (broker.heard, signer.signed) == (b"", [])


@pytest.mark.parametrize(
    "nonce",
    ["tallystick seal v1\0" + "\x9a" * 60, "short", "a b c d e f g h i", "x" * 65, "eyJ0eXAiOiJKV1QifQ.eyJpYXQiOjF9"],
)
async def test_a_broker_that_was_taken_over_gets_no_signature_over_words_of_its_own(
    bus: TestBus, tmp_path: Path, nonce: str
) -> None:
    broker, signer = FakeBroker(nonce, _server_tls(bus.ca, tmp_path)), CountingKey(SESSION)
    refused = await broker.lure(bus, bus.token(ME, SESSION), signer)
    assert isinstance(refused, Unverified)
    assert refused.code == "LOGIN_NONCE"
    assert (broker.heard, signer.signed) == (b"", [])


# ---------------------------------------------------------------- what the broker cannot see, and revocation


async def _connz(bus: TestBus, system: Connection, component: str) -> bytes:
    account = encode_key("A", bus.keys.components[component].account)
    return bytes((await system.request(f"$SYS.REQ.ACCOUNT.{account}.CONNZ", CONNZ_REQUEST, timeout=2)).data)


async def test_a_stolen_session_under_another_certificate_is_let_in_shown_and_kicked(bus: TestBus) -> None:
    token = bus.token(ME, SESSION)
    issued = {hashlib.sha256(token.encode()).digest(): bytes.fromhex(bus.certificate(ME)[1])}
    async with bus.connected("system") as (system,):
        owner = await login(bus, token)
        assert connz_mismatches(await _connz(bus, system, ME), issued) == []
        thief = await login(bus, token, certificate="gateway")
        (found,) = connz_mismatches(await _connz(bus, system, ME), issued)
        assert (found.code, found.component) == ("CONNECTION_CERTIFICATE", ME)
        kick = json.dumps({"cid": found.cid}).encode()
        await system.request(f"$SYS.REQ.SERVER.{found.server}.KICK", kick, timeout=2)
        await until(lambda: thief.is_closed, "the end of the connection", 3)
        assert not owner.is_closed
        assert connz_mismatches(await _connz(bus, system, ME), issued) == []
        await owner.close()


async def test_a_session_minted_with_a_stolen_role_key_is_let_in_and_shown(bus: TestBus) -> None:
    async with bus.connected("system") as (system,):
        client = await login(bus, bus.token(ME, THIEF), THIEF)
        (found,) = connz_mismatches(await _connz(bus, system, ME), {})
        assert (found.code, found.component) == ("CONNECTION_UNLISTED", ME)
        odd = await login(bus, _two_tags(bus))
        codes = {m.code for m in connz_mismatches(await _connz(bus, system, ME), {})}
        assert codes == {"CONNECTION_UNLISTED", "CONNECTION_CREDENTIAL"}
        await client.close()
        await odd.close()


def _two_tags(bus: TestBus) -> str:
    return _token(_with(bus.claims(ME, SESSION), tags=["boot:" + "0" * 32, "more"]), ROLE)


@pytest.mark.parametrize("answer", [b"", b"\xff", b"[]", b'{"server":{"id":"N"},"data":{"total":2,"connections":[]}}'])
def test_a_connection_list_that_is_not_whole_proves_nothing(answer: bytes) -> None:
    with pytest.raises(CouldNotVerify, match="CONNZ"):
        connz_mismatches(answer, {})


async def test_revocation_disconnects_and_keeps_out_and_the_others_stay(bus: TestBus) -> None:
    async with bus.connected("root", "system", "strategy-beta") as (root, system, other):
        token = bus.token(ME, SESSION)
        victim = await login(bus, token)
        revoked_s = now_s()
        pushed = bus.accounts.component(ME, bus.validity, {SESSION.public: revoked_s})
        answer = json.loads((await system.request("$SYS.REQ.CLAIMS.UPDATE", pushed.encode(), timeout=2)).data)
        assert answer["data"]["code"] == 200
        await until(lambda: victim.is_closed, "the end of the connection", 3)
        before = await bus.stored(root)
        with pytest.raises(NatsError, match="Authorization Violation"):
            await login(bus, token)
        assert await bus.stored(root) == before
        assert not other.is_closed
        # A new session of the same component is not concerned.
        await (await login(bus, bus.token(ME, key("next session")), key("next session"))).close()
        # An account token of another operator, or of nobody, is not taken.
        forged = bus.accounts.component(ME, bus.validity)
        head, body, _ = forged.split(".")
        bad = f"{head}.{body}.{_b64(THIEF.sign(f'{head}.{body}'.encode()))}"
        answer = json.loads((await system.request("$SYS.REQ.CLAIMS.UPDATE", bad.encode(), timeout=2)).data)
        assert "error" in answer
        with pytest.raises(NatsError, match="Authorization Violation"):
            await login(bus, token)


async def test_a_component_changes_no_account_and_sees_no_connections(bus: TestBus) -> None:
    async with bus.connected("authority", "gateway") as clients:
        for client in clients:
            for call in ("CLAIMS.UPDATE", "CLAIMS.DELETE", "ACCOUNT.PING.CONNZ", "SERVER.PING"):
                with pytest.raises(NatsTimeout):
                    await client.request(f"$SYS.REQ.{call}", b"{}", timeout=0.05)
                assert "permissions violation for publish" in await client.refused()


async def test_the_authoritys_system_login_deletes_no_account(bus: TestBus) -> None:
    async with bus.connected("system") as (system,):
        for call in ("CLAIMS.DELETE", "SERVER.PING.RELOAD", "SERVER.PING.VARZ"):
            await system.publish(f"$SYS.REQ.{call}", b"{}", reply=system.new_inbox())
            assert "permissions violation for publish" in await system.refused()
