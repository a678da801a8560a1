"""Certificates and TLS: issued by a CA in a real SoftHSM, used by real servers."""

from __future__ import annotations

import asyncio
import ipaddress
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
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given, settings
from hypothesis import strategies as st
from nats.aio.client import Client

from tallystick.runtime.keys import hsm, identity, pki
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
    root: pki.CertificateAuthority

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"

    def paths(self, component: str) -> tuple[Path, Path, Secret]:
        return self.ca, self.folder / f"{component}.pem", PASSPHRASE

    def issue(self, component: str, hosts: tuple[str, ...] = (), now: int = NOW, validity: timedelta = DAY) -> None:
        made = self.authority.issue(component, PASSPHRASE, now, validity, hosts)
        (self.folder / f"{component}.pem").write_bytes(made)

    def server(self, component: str = "nats", *, mutual: bool = True) -> ssl.SSLContext:
        return identity.server_context(*self.paths(component), mutual=mutual)

    def client(self, component: str = "gateway") -> ssl.SSLContext:
        return identity.client_context(*self.paths(component))


def _make(folder: Path, token: hsm.Token, deployment: str, key_id: bytes) -> Files:
    folder.mkdir()
    public = token.generate_p256(key_id, deployment)
    token.generate_p256(key_id + b"-root", deployment)
    root = pki.CertificateAuthority.create(deployment, token.p256_signer(key_id + b"-root"), NOW, 10 * DAY)
    issuing = root.issuing(1, public, NOW, 10 * DAY, HOSTS)
    files = Files(folder, pki.CertificateAuthority(deployment, token.p256_signer(key_id), issuing), root)
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
            if await asyncio.wait_for(reader.readline(), 20) != b"hello\n":
                raise ConnectionResetError("closed without an answer")
            version = writer.get_extra_info("ssl_object").version()
        finally:
            writer.close()
    return version, peers[0]


async def test_both_sides_verify_each_other_over_tls_1_3(ours: Files) -> None:
    version, peer = await _echo(ours.server(), ours.client())
    assert version == "TLSv1.3"
    assert pki.spiffe_component(peer, "lab") == "gateway"
    assert pki.fingerprint(peer) == identity.load_certificate(ours.folder / "gateway.pem").fingerprint(hashes.SHA256())


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
    # The operator's CA is what clients that are none of ours trust: the server sends what lies between.
    anonymous.load_verify_locations(cadata=ours.root.certificate.public_bytes(serialization.Encoding.DER))
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
    pem = identity.decrypted_key(ours.folder / "gateway.pem", PASSPHRASE)
    key = serialization.load_pem_private_key(pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    issuer = identity.load_certificate(ours.folder / "gateway.pem")
    forged_key = ec.generate_private_key(ec.SECP256R1())
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
    forged = (
        pki._builder(issuer.subject, pki._name("lab", "authority"), forged_key.public_key(), NOW, DAY)
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://lab/authority")]), False)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA256())
    )
    chain = forged.public_bytes(serialization.Encoding.PEM) + issuer.public_bytes(serialization.Encoding.PEM)
    plain = forged_key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "forged.pem").write_bytes(chain + plain)
    intruder = identity.client_context(ours.ca, tmp_path / "forged.pem", PASSPHRASE)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        (await _echo(ours.server(), intruder))


async def test_the_issuing_ca_can_name_no_other_deployment_and_no_other_host(ours: Files, tmp_path: Path) -> None:
    """Whoever has the authority's key makes no certificate that counts for anything else."""

    def signed(*names: x509.GeneralName) -> Path:
        key = ec.generate_private_key(ec.SECP256R1())
        issuer = ours.authority.certificate
        usages = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH])
        made = (
            pki._builder(issuer.subject, pki._name("lab", "x"), key.public_key(), NOW, DAY)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(pki._issuer_key(ours.authority._key.public_key()), critical=False)
            .add_extension(usages, critical=False)
            .sign(ours.authority._key, hashes.SHA256())
        )
        path = tmp_path / "forged.pem"
        path.write_bytes(pki.identity_file(made, issuer, key, PASSPHRASE))
        return path

    spiffe, local = x509.UniformResourceIdentifier("spiffe://lab/gateway"), x509.DNSName("localhost")
    right = identity.server_context(ours.ca, signed(spiffe, local), PASSPHRASE)
    assert (await _echo(right, ours.client()))[0] == "TLSv1.3"
    for names in (
        (spiffe, local, x509.DNSName("exchange.example")),
        (spiffe, local, x509.IPAddress(ipaddress.ip_address("10.0.0.1"))),
        (x509.UniformResourceIdentifier("spiffe://other/gateway"), local),
    ):
        path = signed(*names)
        with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree violation"):
            await _echo(identity.server_context(ours.ca, path, PASSPHRASE), ours.client())
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await _echo(ours.server(), identity.client_context(ours.ca, path, PASSPHRASE))


async def test_what_a_replaced_issuing_ca_certified_counts_no_more(ours: Files, token: hsm.Token) -> None:
    """Nor does what it certifies from now on: the operator's CA signed it once, and is no anchor."""
    public = token.generate_p256(b"next", "next")
    issuing = ours.root.issuing(2, public, NOW, DAY, HOSTS)
    folder = ours.folder.parent / "next"
    folder.mkdir()
    after = Files(folder, pki.CertificateAuthority("lab", token.p256_signer(b"next"), issuing), ours.root)
    after.ca.write_bytes(issuing.public_bytes(serialization.Encoding.PEM))
    after.issue("nats", HOSTS)
    after.issue("gateway")
    assert (await _echo(after.server(), after.client()))[0] == "TLSv1.3"
    old = after.client()
    old.load_cert_chain(ours.folder / "gateway.pem", password=PASSPHRASE.reveal)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await _echo(after.server(), old)
    with pytest.raises(ssl.SSLCertVerificationError):
        await _echo(ours.server(), after.client())


async def test_contexts_show_the_next_certificate_from_the_next_handshake_on(ours: Files) -> None:
    ours.issue("changing", HOSTS, validity=timedelta(hours=1))
    shown = identity.Identity("lab", *ours.paths("changing"))
    server, before = shown.server(), shown.fingerprint
    life = 3600 * 10**9
    assert not shown.due(NOW + life // 2)
    assert shown.due(NOW + int(life * 0.68))
    with pytest.raises(ConfigError, match="CERTIFICATE_ENDED"):
        shown.require_current(NOW + life)
    asked = shown.renewal()
    public = pki.requested_key(asked.request, "lab", "changing")
    certificate = ours.authority.certify("changing", public, NOW, DAY, HOSTS)
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    kept = shown.store(asked, pem, NOW)
    assert kept.fingerprint == certificate.fingerprint(hashes.SHA256())
    # Kept, and not shown yet: whoever ends here starts with the new one.
    assert pki.fingerprint((await _echo(ours.server(), shown.tls))[1]) == before
    shown.reload()
    assert shown.fingerprint == kept.fingerprint
    assert pki.fingerprint((await _echo(server, shown.tls))[1]) == kept.fingerprint
    # What is none of ours is not kept: another key's, another's name, another CA's.
    for wrong in (
        pem,
        ours.authority.certify("other", public, NOW, DAY).public_bytes(serialization.Encoding.PEM),
        ours.root.certificate.public_bytes(serialization.Encoding.PEM),
        b"nonsense",
    ):
        with pytest.raises((Malformed, Unverified), match="CERTIFICATE"):
            shown.store(shown.renewal(), wrong, NOW)
    assert identity.Identity("lab", *ours.paths("changing")).fingerprint == kept.fingerprint


@pytest.mark.parametrize("start", [-3 * DAY, 3 * DAY])
async def test_a_certificate_outside_its_time_is_refused(ours: Files, start: timedelta) -> None:
    ours.issue("expired", now=NOW + int(start.total_seconds()) * 1_000_000_000)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        (await _echo(ours.server(), ours.client("expired")))


def test_no_session_is_resumed(ours: Files) -> None:
    assert ours.server().num_tickets == 0


def test_keys_lie_encrypted_on_disk_and_a_wrong_passphrase_opens_nothing(ours: Files) -> None:
    ca, path, _ = ours.paths("gateway")
    assert path.read_bytes().count(b"-----BEGIN ENCRYPTED PRIVATE KEY-----") == 1
    assert path.read_bytes().count(b"PRIVATE KEY-----") == 2
    wrong = Secret("not-the-passphrase")
    with pytest.raises(ConfigError, match="TLS_FILES") as caught:
        identity.client_context(ca, path, wrong)
    assert wrong.reveal() not in str(caught.value)
    with pytest.raises(ConfigError, match="TLS_KEY"):
        identity.decrypted_key(path, wrong)


def test_a_missing_file_is_named(ours: Files, tmp_path: Path) -> None:
    ca, path, _ = ours.paths("gateway")
    for arguments in ((tmp_path / "no", path), (ca, tmp_path / "no")):
        with pytest.raises(ConfigError, match=str(tmp_path / "no")):
            identity.client_context(*arguments, PASSPHRASE)
    with pytest.raises(ConfigError, match=str(tmp_path / "no")):
        identity.load_certificate(tmp_path / "no")


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
    pem = ours.authority.issue("gateway", PASSPHRASE, NOW, timedelta(hours=2))
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
    _, path, passphrase = ours.paths("nats")
    fd = os.memfd_create("key")
    os.write(fd, identity.decrypted_key(path, passphrase))
    config = tmp_path / "nats.conf"
    config.write_text(
        f'listen: "127.0.0.1:{port}"\n'
        f'tls {{ cert_file: "{path}", key_file: "/proc/self/fd/{fd}", ca_file: "{ours.ca}",\n'
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
