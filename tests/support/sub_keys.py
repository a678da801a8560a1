"""A paper exchange whose master account manages the API keys of a sub-account; and the same as a process to be killed.

python -m tests.support.sub_keys CERTIFICATE KEY FOLDER     says its port, and serves until it is killed
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
import sys
import time
import urllib.parse
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tallystick.components.paper_exchange.access import Config, Limits, SubAccount
from tallystick.components.paper_exchange.server import Exchange, Fault
from tallystick.runtime.bus.tasks import Tasks
from tests.support.paper import Raw, config, key, sign
from tests.support.tls import ServerTls

SUB = "sub@desk.example"
FOREIGN = "sub@elsewhere.example"
NEW = "/sapi/v2/sub-account/subAccountApi"
KEYS = "/sapi/v1/sub-account/subAccountApi"
RIGHTS = "/sapi/v1/account/apiRestrictions"
ADDRESSES = f"{KEYS}/ipRestriction"
MANAGER = "managerkey"


def managed(limits: Limits | None = None) -> Config:
    """`main` is the sub-account `SUB` of `master`; `other` is one of another master."""
    base = config(limits or Limits(weight_minute=100_000, orders_10s=10_000, api_keys=8))
    return msgspec.structs.replace(
        base,
        accounts={**base.accounts, "master": {}},
        sub_accounts={
            SUB: SubAccount(master="master", account="main"),
            FOREIGN: SubAccount(master="other", account="other"),
        },
        keys=(*base.keys, key(MANAGER, "master", "read", "manage")),
    )


def exchange(
    tls: ssl.SSLContext,
    folder: Path,
    *,
    clock: Callable[[], int] = time.time_ns,
    faults: dict[str, Fault] | None = None,
    limits: Limits | None = None,
) -> Exchange:
    """An exchange that keeps its state in `folder`."""
    return Exchange(
        managed(limits),
        clock=clock,
        tls=tls,
        within=Tasks(),
        journal=folder / "requests.jsonl",
        state=folder / "state.jsonl",
        faults=faults,
    )


@contextlib.asynccontextmanager
async def serving(tls: ServerTls, folder: Path, **options: Any) -> AsyncIterator[Exchange]:
    """A running `exchange`."""
    life = exchange(tls.server(), folder, **options)
    await life.start()
    try:
        yield life
    finally:
        await life.stop()


def stamp(fields: str = "", clock: Callable[[], int] = time.time_ns) -> str:
    """`fields` with a timestamp, signed by `paper.SECRET`, whose key the manager's is."""
    return sign(f"{fields}{'&' if fields else ''}timestamp={clock() // 1_000_000}")


def pem(secret: Ed25519PrivateKey) -> str:
    """Its public key, as Binance wants it."""
    return secret.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def new_key(label: str, public: str = "", ips: str = "127.0.0.1", email: str = SUB, more: str = "") -> str:
    """The fields of a request for a key that trades."""
    fields = {"email": email, "apiName": label, "status": "2" if ips else "1", "canTrade": "true"}
    fields |= {"ipAddress": ips} if ips else {}
    fields |= {"publicKey": public} if public else {}
    return urllib.parse.urlencode(fields) + more


def signed_by(secret: Ed25519PrivateKey, fields: str = "") -> str:
    """`fields` with a timestamp, signed by another key."""
    text = f"{fields}{'&' if fields else ''}timestamp={time.time_ns() // 1_000_000}"
    return f"{text}&signature={urllib.parse.quote(base64.b64encode(secret.sign(text.encode())).decode(), safe='')}"


async def make_key(client: Raw, label: str, secret: Ed25519PrivateKey, **options: str) -> str:
    """The id of a new key of `secret`."""
    status, answer = await client.send("POST", NEW, stamp(new_key(label, pem(secret), **options)), MANAGER)
    assert status == 200, answer
    return str(answer["apiKey"])


async def _serve(certificate: str, key_file: str, folder: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(certificate, key_file)
    print(await exchange(context, Path(folder)).start(), flush=True)  # noqa: T201
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(*sys.argv[1:]))
