"""Certificates and TLS: issued by a CA in a real SoftHSM, used by real servers."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import ssl
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import nats
import pytest
from aiohttp import ClientSession, web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st
from nats.aio.client import Client

from tallystick.runtime.keys import hsm, pki
from tallystick.runtime.keys.keystore import Secret
from tallystick.schemas.errors import ConfigError, Malformed, Unverified

PIN = Secret("pki-test-pin")
PASSPHRASE = Secret("pki-test-passphrase")
DAY = timedelta(days=1)
NOW = time.time_ns()
HOSTS = ("localhost", "127.0.0.1")


@dataclass
class Files:
    """A CA on disk with its leaves, as a deployment folder has them."""

    folder: Path
    authority: pki.CertificateAuthority

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"

    def paths(self, component: str) -> tuple[Path, Path, Path, Secret]:
        return self.ca, self.folder / f"{component}.pem", self.folder / f"{component}.key", PASSPHRASE

    def issue(self, component: str, hosts: tuple[str, ...] = (), now: int = NOW, validity: timedelta = DAY) -> None:
        certificate, key = self.authority.issue(component, PASSPHRASE, now, validity, hosts)
        (self.folder / f"{component}.pem").write_bytes(certificate)
        (self.folder / f"{component}.key").write_bytes(key)

    def server(self, component: str = "nats", *, mutual: bool = True) -> ssl.SSLContext:
        return pki.server_context(*self.paths(component), mutual=mutual)

    def client(self, component: str = "gateway") -> ssl.SSLContext:
        return pki.client_context(*self.paths(component))


def _make(folder: Path, token: hsm.Token, deployment: str, key_id: bytes) -> Files:
    folder.mkdir()
    token.generate_p256(key_id, deployment)
    files = Files(folder, pki.CertificateAuthority.create(deployment, token.p256_signer(key_id), NOW, 10 * DAY))
    files.ca.write_bytes(files.authority.certificate.public_bytes(serialization.Encoding.PEM))
    files.issue("nats", HOSTS)
    files.issue("gateway")
    return files


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[hsm.Token]:
    home = tmp_path_factory.mktemp("pki") / "operator"
    hsm.create_token(home, "operator", PIN, PIN)
    with hsm.Token.open(home, "operator", PIN, writable=True) as opened:
        yield opened


@pytest.fixture(scope="module")
def ours(token: hsm.Token, tmp_path_factory: pytest.TempPathFactory) -> Files:
    return _make(tmp_path_factory.mktemp("ours") / "pki", token, "lab", b"ca")


@pytest.fixture(scope="module")
def foreign(token: hsm.Token, tmp_path_factory: pytest.TempPathFactory) -> Files:
    # The same deployment name, another key: only the chain tells them apart.
    return _make(tmp_path_factory.mktemp("foreign") / "pki", token, "lab", b"foreign-ca")


async def _echo(server: ssl.SSLContext, client: ssl.SSLContext, name: str = "localhost") -> tuple[str, bytes]:
    """Send one line through a TLS server and back; returns the protocol version and the peer's DER on the server."""
    peers: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peers.append(writer.get_extra_info("ssl_object").getpeercert(binary_form=True) or b"")
        writer.write(await reader.readline())
        await writer.drain()
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client, server_hostname=name)
        try:
            writer.write(b"hello\n")
            await writer.drain()
            # With TLS 1.3 a refused client certificate shows at the first read.
            if await asyncio.wait_for(reader.readline(), 5) != b"hello\n":
                raise ConnectionResetError("closed without an answer")
            version = writer.get_extra_info("ssl_object").version()
        finally:
            writer.close()
    return version, peers[0]


async def test_both_sides_verify_each_other_over_tls_1_3(ours: Files) -> None:
    version, peer = await _echo(ours.server(), ours.client())
    assert version == "TLSv1.3"
    assert pki.spiffe_component(peer, "lab") == "gateway"
    assert pki.fingerprint(peer) == pki.load_certificate(ours.folder / "gateway.pem").fingerprint(hashes.SHA256())


async def test_a_tls_1_2_client_is_refused(ours: Files) -> None:
    old = ours.client()
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionError)):
        (await _echo(ours.server(), old))
    lenient = ours.server()
    lenient.minimum_version = ssl.TLSVersion.TLSv1_2
    assert (await _echo(lenient, old))[0] == "TLSv1.2"  # nothing but the version stood in its way


async def test_a_tls_1_2_server_is_refused(ours: Files) -> None:
    old = ours.server()
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionError)):
        (await _echo(old, ours.client()))


async def test_a_client_of_a_foreign_ca_is_refused(ours: Files, foreign: Files) -> None:
    intruder = foreign.client()
    intruder.load_verify_locations(cafile=ours.ca)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        (await _echo(ours.server(), intruder))


async def test_a_client_without_a_certificate_is_refused(ours: Files) -> None:
    anonymous = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anonymous.load_verify_locations(cafile=ours.ca)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        (await _echo(ours.server(), anonymous))
    assert await _echo(ours.server(mutual=False), anonymous) == ("TLSv1.3", b"")


async def test_a_server_of_a_foreign_ca_is_refused(ours: Files, foreign: Files) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match=r"self-signed certificate|unable to get local issuer"):
        (await _echo(foreign.server(), ours.client()))


async def test_a_server_under_another_host_name_is_refused(ours: Files) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        (await _echo(ours.server(), ours.client(), "broker.example"))


async def test_a_component_without_host_names_cannot_pose_as_a_server(ours: Files) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        (await _echo(ours.server("gateway"), ours.client()))


async def test_a_component_cannot_issue_certificates(ours: Files, tmp_path: Path) -> None:
    key = serialization.load_pem_private_key((ours.folder / "gateway.key").read_bytes(), PASSPHRASE.reveal().encode())
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    issuer = pki.load_certificate(ours.folder / "gateway.pem")
    forged_key = ec.generate_private_key(ec.SECP256R1())
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
    forged = (
        pki._builder(issuer.subject, pki._name("lab", "authority"), forged_key.public_key(), NOW, DAY)
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://lab/authority")]), False)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA256())
    )
    chain = forged.public_bytes(serialization.Encoding.PEM) + issuer.public_bytes(serialization.Encoding.PEM)
    (tmp_path / "forged.pem").write_bytes(chain)
    (tmp_path / "forged.key").write_bytes(
        forged_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    intruder = pki.client_context(ours.ca, tmp_path / "forged.pem", tmp_path / "forged.key", PASSPHRASE)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        (await _echo(ours.server(), intruder))


@pytest.mark.parametrize("start", [-3 * DAY, 3 * DAY])
async def test_a_certificate_outside_its_time_is_refused(ours: Files, start: timedelta) -> None:
    ours.issue("expired", now=NOW + int(start.total_seconds()) * 1_000_000_000)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        (await _echo(ours.server(), ours.client("expired")))


def test_no_session_is_resumed(ours: Files) -> None:
    assert ours.server().num_tickets == 0


def test_keys_lie_encrypted_on_disk_and_a_wrong_passphrase_opens_nothing(ours: Files) -> None:
    ca, certificate, key, _ = ours.paths("gateway")
    assert key.read_bytes().startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
    wrong = Secret("not-the-passphrase")
    with pytest.raises(ConfigError, match="TLS_FILES") as caught:
        pki.client_context(ca, certificate, key, wrong)
    assert wrong.reveal() not in str(caught.value)
    with pytest.raises(ConfigError, match="TLS_KEY"):
        pki.decrypted_key(key, wrong)


def test_a_missing_file_is_named(ours: Files, tmp_path: Path) -> None:
    ca, certificate, key, _ = ours.paths("gateway")
    for arguments in (
        (tmp_path / "no", certificate, key),
        (ca, tmp_path / "no", key),
        (ca, certificate, tmp_path / "no"),
    ):
        with pytest.raises(ConfigError, match=str(tmp_path / "no")):
            pki.client_context(*arguments, PASSPHRASE)
    with pytest.raises(ConfigError, match=str(tmp_path / "no")):
        pki.load_certificate(tmp_path / "no")


def test_a_ca_certificate_of_another_key_or_deployment_is_refused(
    ours: Files, foreign: Files, token: hsm.Token
) -> None:
    signer = token.p256_signer(b"ca")
    again = pki.CertificateAuthority("lab", signer, ours.authority.certificate)
    assert again.certificate == ours.authority.certificate
    with pytest.raises(Unverified, match="CA_KEY"):
        pki.CertificateAuthority("lab", signer, foreign.authority.certificate)
    with pytest.raises(Unverified, match="CA_KEY"):
        pki.CertificateAuthority("other", signer, ours.authority.certificate)


def test_the_validity_asked_for_is_the_validity_issued(ours: Files) -> None:
    pem, _ = ours.authority.issue("gateway", PASSPHRASE, NOW, timedelta(hours=2))
    certificate = x509.load_pem_x509_certificate(pem)
    assert certificate.not_valid_after_utc == datetime.fromtimestamp(NOW // 10**9, UTC) + timedelta(hours=2)
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc == timedelta(hours=2) + pki.BACKDATE


def _certificate(*uris: str) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = pki._builder(pki._name("x", "x"), pki._name("x", "x"), key.public_key(), NOW, DAY)
    if uris:
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])
        builder = builder.add_extension(names, critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


@pytest.mark.parametrize(
    "uris",
    [
        (),
        ("spiffe://other/gateway",),
        ("spiffe://lab/gateway", "spiffe://lab/custody"),
        ("spiffe://lab/gateway", "https://example.org/"),
        ("spiffe://lab/gateway/more",),
        ("spiffe://lab/",),
        ("spiffe://lab",),
        ("spiffe://lab.example/gateway",),
        ("spiffe://lab/gateway?x=1",),
        ("spiffe://lab/gateway#x",),
        ("spiffe://user@lab/gateway",),
        ("spiffe://lab:443/gateway",),
        ("SPIFFE://lab/gateway",),
        ("spiffe://lab/Gateway",),
        ("spiffe://lab/gateway\n",),
        ("https://lab/gateway",),
    ],
)
def test_a_spiffe_id_of_any_other_form_or_deployment_is_refused(uris: tuple[str, ...]) -> None:
    for peer in (_certificate(*uris), {"subjectAltName": tuple(("URI", uri) for uri in uris)}):
        with pytest.raises(Unverified, match="SPIFFE"):
            pki.spiffe_component(peer, "lab")


def test_the_one_spiffe_id_of_this_deployment_names_the_component() -> None:
    assert pki.spiffe_id("lab", "strategy-momentum") == "spiffe://lab/strategy-momentum"
    assert pki.spiffe_component(_certificate("spiffe://lab/strategy-momentum"), "lab") == "strategy-momentum"
    assert pki.spiffe_component({"subjectAltName": (("DNS", "x"), ("URI", "spiffe://lab/audit"))}, "lab") == "audit"
    with pytest.raises(Malformed):
        pki.spiffe_id("lab", "a/b")


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=200), uri=st.text(max_size=60))
def test_no_bytes_or_text_pass_as_a_certificate(data: bytes, uri: str) -> None:
    with pytest.raises(Unverified):
        pki.spiffe_component(data, "lab")
    if not uri.startswith("spiffe://lab/"):
        with pytest.raises(Unverified):
            pki.spiffe_component({"subjectAltName": (("URI", uri),)}, "lab")


async def test_nats_server_accepts_the_certificates_and_refuses_foreign_ones(
    ours: Files, foreign: Files, tmp_path: Path
) -> None:
    binary = shutil.which("nats-server", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])))
    assert binary is not None, "nats-server is a dependency"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    _, certificate, key, passphrase = ours.paths("nats")
    fd = os.memfd_create("key")
    os.write(fd, pki.decrypted_key(key, passphrase))
    config = tmp_path / "nats.conf"
    config.write_text(
        f'listen: "127.0.0.1:{port}"\n'
        f'tls {{ cert_file: "{certificate}", key_file: "/proc/self/fd/{fd}", ca_file: "{ours.ca}",\n'
        '  verify: true, min_version: "1.3", handshake_first: true, timeout: 2 }\n'
    )
    server = await asyncio.create_subprocess_exec(
        binary, "-c", str(config), pass_fds=[fd], stderr=asyncio.subprocess.PIPE
    )
    os.close(fd)
    try:
        await _talk_to_nats(port, ours, foreign)
    finally:
        server.send_signal(signal.SIGTERM)
        _, log = await server.communicate()
    assert b"TLS required for client connections" in log


async def _connect(url: str, context: ssl.SSLContext) -> Client:
    deadline = time.monotonic() + 5
    while True:
        try:
            return await nats.connect(
                url, tls=context, tls_handshake_first=True, allow_reconnect=False, connect_timeout=2
            )
        except OSError:  # not listening yet
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)


async def _talk_to_nats(port: int, ours: Files, foreign: Files) -> None:
    url = f"tls://localhost:{port}"
    client = await _connect(url, ours.client())
    await client.flush()
    await client.close()
    intruder = foreign.client()
    intruder.load_verify_locations(cafile=ours.ca)
    old = ours.client()
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_2
    for context in (intruder, old):
        with pytest.raises((ssl.SSLError, OSError, nats.errors.Error)):
            await nats.connect(url, tls=context, tls_handshake_first=True, allow_reconnect=False, connect_timeout=0.3)


async def test_aiohttp_serves_and_calls_with_the_certificates(ours: Files) -> None:
    async def who(request: web.Request) -> web.Response:
        assert request.transport is not None
        peer = request.transport.get_extra_info("peercert")
        return web.Response(text=pki.spiffe_component(peer, "lab"))

    app = web.Application()
    app.router.add_get("/", who)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=ours.server())
    await site.start()
    port = runner.addresses[0][1]
    async with ClientSession() as session, session.get(f"https://127.0.0.1:{port}/", ssl=ours.client()) as answer:
        assert await answer.text() == "gateway"
    await runner.cleanup()
