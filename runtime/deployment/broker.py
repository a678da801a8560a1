"""The broker of a deployment: what the embedded server is made from, what is provisioned on it, and its certificate."""

from __future__ import annotations

import os
import time
from typing import Final

from tallystick.infra.nats import topology
from tallystick.infra.nats.claims import ADMIN, Accounts, Validity
from tallystick.infra.nats.provision import Provisioned, provision, provision_state
from tallystick.infra.nats.server import EmbeddedServer, ServerConfig
from tallystick.runtime.deployment import certificates
from tallystick.runtime.deployment import folder as layout
from tallystick.runtime.deployment.folder import Deployment
from tallystick.runtime.keys.identity import Identity, client_context, decrypted_key
from tallystick.runtime.keys.keystore import Keystore
from tallystick.runtime.keys.token_process import TokenProcess
from tallystick.runtime.nats_py import Client, NatsError
from tallystick.schemas.bounds import SECOND
from tallystick.schemas.errors import ConfigError
from tallystick.schemas.nats_jwt import SessionKey, Signer, encode_jwt, encode_key, sign_nonce, user_claims

ACCOUNT_LIFETIME_S: Final = 86_400
ADMIN_LIFETIME_S: Final = 60


def make(deployment: Deployment, keystore: Keystore, bus: topology.Bus, signing: TokenProcess) -> EmbeddedServer:
    """The server, to be started.  `signing` has the operator's signing key.  Raises `ConfigError`."""
    config = deployment.config
    keys = deployment.load_bus_keys()
    try:
        operator = deployment.operator_token.read_text("ascii")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError("OPERATOR_TOKEN", f"{deployment.operator_token}: {exc}; `tallystick init` makes it") from exc
    accounts = Accounts(bus, keys, signing.signer(layout.KEY_OPERATOR), signing.signer(layout.KEY_ACTIVATION))
    now = time.time_ns() // SECOND
    return EmbeddedServer(
        ServerConfig(
            name=deployment.name,
            operator=operator,
            system_account=encode_key("A", keys.system_account),
            accounts=accounts.all(Validity(issued_s=now, expires_s=now + ACCOUNT_LIFETIME_S)),
            ca_file=deployment.issuing_ca,
            cert_file=deployment.identity(layout.BROKER),
            key_pem=_key(deployment, keystore),
            store_key=bytes.fromhex(keystore[layout.PIN_STORE_KEY].reveal()),
            folder=deployment.jetstream,
            resolver_dir=deployment.jwt,
            run_dir=deployment.run,
            log_file=deployment.log("nats").with_suffix(".log"),
            host=config.host,
            port=config.broker.port,
        )
    )


def _key(deployment: Deployment, keystore: Keystore) -> bytes:
    return decrypted_key(deployment.identity(layout.BROKER), keystore[layout.passphrase_name(layout.BROKER)])


def identity(deployment: Deployment, keystore: Keystore) -> Identity:
    """What the broker shows from its next start or renewal on.  Raises `ConfigError`."""
    passphrase = keystore[layout.passphrase_name(layout.BROKER)]
    return Identity(deployment.name, deployment.issuing_ca, deployment.identity(layout.BROKER), passphrase)


def renew(deployment: Deployment, keystore: Keystore, server: EmbeddedServer) -> None:
    """A new key and certificate for a broker that runs.  Raises `TallystickError`.

    Crash between the two: the next start shows the new one.
    """
    certificates.certify(deployment, keystore, (layout.BROKER,), time.time_ns())
    server.renew(_key(deployment, keystore))


async def provision_all(
    deployment: Deployment, keystore: Keystore, bus: topology.Bus, signing: TokenProcess, url: str
) -> Provisioned:
    """Streams and durables, made by a break-glass administrator whose sessions live a minute.  Raises `ConfigError`."""
    keys = deployment.load_bus_keys()
    key = signing.signer(layout.KEY_ADMIN)
    client = await _admin(deployment, keystore, url, key, keys.core_account)
    try:
        made = await provision(client, bus)
    finally:
        await client.close()
    for component in bus.components.values():
        if component.state_bytes:
            client = await _admin(deployment, keystore, url, key, keys.components[component.name].account)
            try:
                await provision_state(client, component.state_bytes)
            finally:
                await client.close()
    return made


async def _admin(deployment: Deployment, keystore: Keystore, url: str, signer: Signer, account: bytes) -> Client:
    key, now = SessionKey(os.urandom(32)), time.time_ns() // SECOND
    boot, jti = os.urandom(16), os.urandom(16).hex()
    claims = user_claims(ADMIN, boot, key.public, signer.public, account, now, now + ADMIN_LIFETIME_S, jti)
    token = encode_jwt(signer, "A", claims)
    passphrase = keystore[layout.passphrase_name(layout.OPERATOR)]
    client = Client()
    try:
        await client.connect(
            servers=[url],
            name=ADMIN,
            user_jwt_cb=token.encode,
            signature_cb=lambda nonce: sign_nonce(key, nonce),
            tls=client_context(deployment.issuing_ca, deployment.identity(layout.OPERATOR), passphrase),
            tls_handshake_first=True,
            allow_reconnect=False,
            # Else the client tries a server that is not there for two minutes, in its own rhythm.
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=5,
            inbox_prefix=f"_INBOX_{ADMIN}".encode(),
        )
    except (TimeoutError, NatsError, OSError) as exc:
        raise ConfigError("BROKER_ADMIN", f"{url}: {type(exc).__name__}: {exc}") from exc
    return client
