"""A real broker for tests: software keys, throw-away certificates, the topology's accounts and streams.

    with running_bus(tmp_path) as bus:          # a server, its streams and durables, in well under a second
        async with bus.connected("gateway") as client: ...

Keys have the labels of `tests.support.world`, so that its trust root and credentials fit.  `connect_root` is
what no deployment has: a user of CORE that may do everything, to look at what was stored and to play the insider.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ipaddress
import json
import ssl
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from nats.aio.client import Client

from tallystick.infra.nats.claims import ADMIN, Accounts, BusKeys, ComponentKeys, Validity, operator_token
from tallystick.infra.nats.provision import provision, provision_state
from tallystick.infra.nats.server import EmbeddedServer, ServerConfig
from tallystick.infra.nats.topology import Bus, Component, load
from tallystick.schemas.nats_jwt import Claims, SessionKey, Signer, encode_jwt, encode_key, sign_nonce, user_claims
from tests.support.world import DEPLOYMENT, key, seed

STRATEGIES = ("alpha", "beta")
OBSERVERS = ("watch",)
ROOT_KEY = key("root of core")


def now_s() -> int:
    return time.time_ns() // 1_000_000_000


class Authority509:
    """A throw-away certificate authority that issues SPIFFE client certificates and the server's."""

    def __init__(self, folder: Path, deployment: str = DEPLOYMENT, name: str = "test ca") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._deployment = deployment
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = self._builder(self._name, self._key).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        self.ca_file = folder / "ca.pem"
        self.ca_file.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def _builder(self, subject: x509.Name, public: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(public.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(minutes=1))
            .not_valid_after(now + dt.timedelta(days=1))
        )

    def issue(self, name: str, *, server: bool = False) -> tuple[Path, bytes, str]:
        """Certificate file, private key (PEM), SHA-256 of the certificate (hex)."""
        private = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(f"spiffe://{self._deployment}/{name}")]
        if server:
            names += [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        usage = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
        certificate = (
            self._builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), private)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        file = self._folder / f"{name}.pem"
        file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        pem = private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return file, pem, certificate.fingerprint(hashes.SHA256()).hex()

    def client_context(self, name: str) -> tuple[ssl.SSLContext, str]:
        """A TLS 1.3 client context with a certificate of `name`, and that certificate's SHA-256 (hex)."""
        file, pem, digest = self.issue(name)
        key_file = self._folder / f"{name}.key"
        key_file.write_bytes(pem)
        context = ssl.create_default_context(cafile=str(self.ca_file))
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(file, key_file)
        return context, digest


def bus_keys(bus: Bus) -> BusKeys:
    """Software keys with the labels of `tests.support.world`."""
    return BusKeys(
        operator=key("nats operator").public,
        operator_signing=key("nats operator signing").public,
        system_account=key("system account").public,
        system_role=key("system role").public,
        core_account=key("core").public,
        activation=key("activation").public,
        admin=key("admin").public,
        components={
            name: ComponentKeys(account=key(f"account {name}").public, role=key(f"role {name}").public)
            for name in bus.components
        },
    )


class Connection(Client):
    """A client that remembers what the server refused."""

    def __init__(self) -> None:
        super().__init__()
        self.refusals: list[str] = []

    async def refused(self) -> str:
        """The next refusal that the server sends (lower case); fails after 2 s without one."""
        for _ in range(200):
            if self.refusals:
                return self.refusals.pop(0)
            await asyncio.sleep(0.01)
        raise AssertionError("the server refused nothing")


class TestBus:
    """A running broker and everything needed to log in to it as anybody."""

    __test__ = False

    def __init__(self, folder: Path, strategies: Sequence[str] = STRATEGIES, lifetime_s: int = 86_400) -> None:
        self.bus = load().expand(strategies, OBSERVERS)
        self.keys = bus_keys(self.bus)
        self.validity = Validity(issued_s=now_s() - 1, expires_s=now_s() + lifetime_s)
        self.accounts = Accounts(self.bus, self.keys, key("nats operator signing"), key("activation"))
        self.ca = Authority509(folder / "pki")
        self._contexts: dict[str, tuple[ssl.SSLContext, str]] = {}
        cert_file, key_pem, _ = self.ca.issue("broker", server=True)
        self.folder = folder
        self.server = EmbeddedServer(
            ServerConfig(
                name=DEPLOYMENT,
                operator=operator_token(key("nats operator"), self.keys, DEPLOYMENT, self.validity),
                system_account=encode_key("A", self.keys.system_account),
                accounts=self.tokens(),
                ca_file=self.ca.ca_file,
                cert_file=cert_file,
                key_pem=key_pem,
                store_key=seed("store"),
                folder=folder / "jetstream",
                resolver_dir=folder / "jwt",
                run_dir=folder / "run",
                log_file=folder / "nats.log",
            )
        )

    def tokens(self, revocations: Mapping[str, Mapping[bytes, int]] | None = None) -> dict[str, str]:
        """All account tokens; CORE with the test's own root key."""
        core = encode_key("A", self.keys.core_account)
        return self.accounts.all(self.validity, revocations) | {
            core: self.accounts.core(self.validity, [ROOT_KEY.public])
        }

    def component(self, name: str) -> Component:
        return self.bus.component(name)

    def certificate(self, name: str) -> tuple[ssl.SSLContext, str]:
        """A TLS context with `name`'s client certificate, and the certificate's SHA-256 (hex)."""
        if name not in self._contexts:
            self._contexts[name] = self.ca.client_context(name)
        return self._contexts[name]

    def claims(
        self,
        component: str,
        session: SessionKey,
        *,
        issued_s: int | None = None,
        lifetime_s: int = 120,
        boot: bytes | None = None,
    ) -> Claims:
        """What the authority would state about a session of `component`."""
        issued = now_s() if issued_s is None else issued_s
        keys = self.keys.components[component]
        jti = session.public.hex()[:16]
        return user_claims(
            component,
            boot or seed(f"boot {component}")[:16],
            session.public,
            keys.role,
            keys.account,
            issued,
            issued + lifetime_s,
            jti,
        )

    def token(self, component: str, session: SessionKey, **kw: Any) -> str:
        """A credential of `component`, signed by its role key."""
        return encode_jwt(key(f"role {component}"), "A", self.claims(component, session, **kw))

    async def connect(
        self, token: str, signer: Signer, *, inbox: str, certificate: str, url: str | None = None, **kw: Any
    ) -> Connection:
        """Log in with `token`, the nonce signed by `signer`, under `certificate`'s client certificate."""
        client = Connection()

        async def remember(exc: Exception) -> None:
            client.refusals.append(str(exc).lower())

        await client.connect(
            **{
                "servers": url or self.server.url,
                "user_jwt_cb": token.encode,
                "signature_cb": lambda nonce: sign_nonce(signer, nonce),
                "tls": self.certificate(certificate)[0],
                "tls_handshake_first": True,
                "inbox_prefix": inbox.encode(),
                "allow_reconnect": False,
                "connect_timeout": 3,
                "error_cb": remember,
                **kw,
            }
        )
        return client

    async def connect_as(self, component: str, session: SessionKey | None = None, **kw: Any) -> Connection:
        """Log in as `component`, with everything that is its own."""
        session = session or key(f"session {component}")
        claims = {k: kw.pop(k) for k in ("issued_s", "lifetime_s", "boot") if k in kw}
        inbox = self.component(component).inbox
        kw = {"inbox": inbox, "certificate": component, **kw}
        return await self.connect(self.token(component, session, **claims), session, **kw)

    async def connect_admin(self, account: str = "") -> Connection:
        """Log in as break-glass administrator of CORE, or of the component `account`'s own JetStream."""
        public = self.keys.components[account].account if account else self.keys.core_account
        session = key("session admin")
        claims = user_claims(
            ADMIN, seed("boot admin")[:16], session.public, self.keys.admin, public, now_s(), now_s() + 120, "admin"
        )
        return await self.connect(
            encode_jwt(key("admin"), "A", claims), session, inbox=f"_INBOX_{ADMIN}", certificate=ADMIN
        )

    async def connect_system(self) -> Connection:
        """Log in as the authority in account SYS."""
        session = key("session system")
        public = self.keys.system_account
        claims = user_claims(
            "authority",
            seed("boot system")[:16],
            session.public,
            self.keys.system_role,
            public,
            now_s(),
            now_s() + 120,
            "system",
        )
        token = encode_jwt(key("system role"), "A", claims)
        return await self.connect(token, session, inbox="_INBOX_authority", certificate="authority")

    async def connect_root(self) -> Connection:
        """Log in to CORE with a right to everything: the insider that a deployment must not have."""
        session = key("session root")
        claims = Claims(
            iat=now_s(),
            iss=encode_key("A", ROOT_KEY.public),
            sub=encode_key("U", session.public),
            name="root",
            exp=now_s() + 600,
            jti="root",
            nats={
                "issuer_account": encode_key("A", self.keys.core_account),
                "pub": {},
                "sub": {},
                "subs": -1,
                "data": -1,
                "payload": -1,
                "type": "user",
                "version": 2,
            },
        )
        return await self.connect(encode_jwt(ROOT_KEY, "A", claims), session, inbox="_INBOX_root", certificate="root")

    @contextlib.asynccontextmanager
    async def connected(self, *components: str) -> AsyncIterator[list[Connection]]:
        """Connections of `components` (`root`, `admin` and `system` are understood), closed at the end."""
        special = {"root": self.connect_root, "admin": self.connect_admin, "system": self.connect_system}
        clients: list[Connection] = []
        try:
            for name in components:
                # One by one, so that what is open is closed if a later one fails.
                clients.append(await (special[name]() if name in special else self.connect_as(name)))  # noqa: PERF401
            yield clients
        finally:
            for client in clients:
                await client.close()

    async def provision(self) -> None:
        """Streams and durables of CORE, and of every component with state."""
        admin = await self.connect_admin()
        try:
            await provision(admin, self.bus)
        finally:
            await admin.close()
        for component in self.bus.components.values():
            if component.state_bytes:
                admin = await self.connect_admin(component.name)
                try:
                    await provision_state(admin, component.state_bytes)
                finally:
                    await admin.close()

    async def stored(self, root: Connection) -> dict[str, tuple[int, int]]:
        """For every stream of CORE: how many messages it holds and the sequence of the last."""
        state: dict[str, tuple[int, int]] = {}
        for stream in self.bus.streams:
            info = json.loads((await root.request(f"$JS.API.STREAM.INFO.{stream}")).data)
            state[stream] = (info["state"]["messages"], info["state"]["last_seq"])
        return state


@contextlib.contextmanager
def running_bus(folder: Path, strategies: Sequence[str] = STRATEGIES, *, provisioned: bool = True) -> Iterator[TestBus]:
    """A broker in `folder`, stopped at the end."""
    bus = TestBus(folder, strategies)
    bus.server.start()
    try:
        if provisioned:
            asyncio.run(bus.provision())
        yield bus
    finally:
        bus.server.stop()


__all__ = ["Authority509", "Connection", "TestBus", "bus_keys", "now_s", "running_bus"]
