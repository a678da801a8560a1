"""Every exchange of ccxt twice under one frozen clock: with its secret in software, and with a handle on a token's key.

What ccxt itself signs is the reference.  ECDSA is compared through a twin: the token's own signature is verified, and ccxt's
deterministic one is given back, so that everything around it can be compared byte for byte.
"""

from __future__ import annotations

import base64
import json
import random
import re
import sys
import time
import types
import uuid
from collections import Counter
from collections.abc import Iterator
from typing import Any

import ccxt
import ccxt.async_support
import ccxt.pro
import msgspec
import pytest
from ccxt.base.types import Entry
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tallystick.runtime.keys.hsm import Token
from tallystick.runtime.keys.keystore import Secret
from tallystick.venues import Denied
from tallystick.venues.signing.exchange import give, hooked
from tallystick.venues.signing.schemes import Scheme
from tallystick.venues.signing.token_keys import TokenKeys, take_in

NOW_S = 1_760_000_000.123
PACKAGES = {"sync": ccxt, "async": ccxt.async_support, "pro": ccxt.pro}
SEED = bytes(range(1, 33))
EDWARDS = ed25519.Ed25519PrivateKey.from_private_bytes(SEED)
P256 = ec.derive_private_key(int.from_bytes(SEED, "big"), ec.SECP256R1())
WALLET = ec.derive_private_key(int.from_bytes(SEED, "big"), ec.SECP256K1())
RSA = rsa.generate_private_key(65537, 2048)


def _pem(key: Any, form: PrivateFormat = PrivateFormat.PKCS8) -> str:
    return str(key.private_bytes(Encoding.PEM, form, NoEncryption()).decode())


def secret_of(scheme: Scheme, number: int = 1) -> str:
    """A secret as an exchange gives it out; another `number`, another HMAC secret."""
    public = EDWARDS.public_key().public_bytes_raw()
    base58 = ccxt.Exchange.binary_to_base58
    match scheme.form:
        case "pem":
            return _pem(EDWARDS)
        case "ec-pem":
            return _pem(P256, PrivateFormat.TraditionalOpenSSL)
        case "rsa-pem":
            return _pem(RSA)
        case "base64":
            return base64.b64encode(SEED + public).decode()
        case "base58":
            return str(base58(SEED + public))
        case "orderly":
            return f"ed25519:{base58(SEED)}"
        case "hex":
            return f"0x{SEED.hex()}"
        case "text-44":
            return base64.b64encode(random.Random(number).randbytes(32)).decode()
        case "text":
            return base64.b64encode(random.Random(number).randbytes(24)).decode()


class Twin:
    """`TokenKeys` that counts; ECDSA's own signature is verified and replaced by ccxt's."""

    def __init__(self, token: Token, name: str, scheme: Scheme, secret: str) -> None:
        self._keys = TokenKeys(token, name.encode(), scheme)
        self._curve = "secp256k1" if scheme.kind == "secp256k1" else "p256"
        self._private = WALLET if scheme.kind == "secp256k1" else P256
        self.used: Counter[str] = Counter()

    def mac(self, transforms: tuple[str, ...], algorithm: str, data: bytes) -> bytes:
        self.used[f"{'+'.join(transforms)} {algorithm}"] += 1
        return self._keys.mac(transforms, algorithm, data)

    def ed25519(self, data: bytes) -> bytes:
        self.used["ed25519"] += 1
        return self._keys.ed25519(data)

    def rsa(self, data: bytes, algorithm: str) -> bytes:
        self.used[f"rsa {algorithm}"] += 1
        return self._keys.rsa(data, algorithm)

    def ecdsa(self, digest: bytes, of: bytes = b"") -> tuple[int, int]:
        self.used[self._curve] += 1
        r, s = self._keys.ecdsa(digest)
        self._private.public_key().verify(encode_dss_signature(r, s), digest, ec.ECDSA(Prehashed(hashes.SHA256())))
        made = ccxt.Exchange.ecdsa(digest.hex(), SEED.hex(), self._curve, None)
        return int(made["r"], 16), int(made["s"], 16)

    @property
    def point(self) -> bytes:
        return self._keys.point


class Pair(msgspec.Struct):
    """One exchange with one scheme: in software, and with the token."""

    software: Any
    token: Any
    keys: Twin


class Outcome(msgspec.Struct, frozen=True):
    """What a call made: the request as text, or `error`."""

    request: str = ""
    error: str = ""
    denied: str = ""


class Desk:
    """Makes pairs; the keys of each scheme are imported once into `token`."""

    def __init__(self, token: Token) -> None:
        self._token = token
        self._there: set[str] = set()

    def pair(
        self, exchange_id: str, scheme: Scheme, api: str = "sync", base: Any = None, other_key: bool = False
    ) -> Pair:
        """`base`: a class to use instead of ccxt's own; `other_key`: the token has another secret than the software."""
        name = f"{scheme.kind}-{scheme.form}-{'-'.join(f'{t}.{a}' for t, a in scheme.macs)}-{other_key}"
        secret = secret_of(scheme)
        if name not in self._there:
            take_in(self._token, name.encode(), name, Secret(secret_of(scheme, 2 if other_key else 1)), scheme)
            self._there.add(name)
        kind = base or getattr(PACKAGES[api], exchange_id)
        software, token = kind(_config(exchange_id, scheme)), hooked(kind)(_config(exchange_id, scheme))
        keys = Twin(self._token, name, scheme, secret)
        setattr(software, scheme.field, secret)
        give(token, keys, scheme)
        if scheme.field == "privateKey" and exchange_id != "grvt":
            software.secret = token.secret = "x" * 32
        return Pair(software, token, keys)


def _config(exchange_id: str, scheme: Scheme) -> dict[str, Any]:
    api_key = {"gemini": "account-key", "grvt": ""}.get(exchange_id, "key")
    if scheme.form == "ec-pem":
        api_key = "organizations/x/apiKeys/y"
    options: dict[str, Any] = {
        "accessToken": "token", "expires": 999_999_999_999_999, "v2CloudAPiKey": scheme.form == "base64",
        "subaccount_id": "1", "account_id": "1",
    }  # fmt: skip
    if exchange_id != "ndax":
        options["sessionToken"] = "s"
    return {
        "apiKey": api_key, "password": "passphrase", "uid": "12345", "login": "login", "token": "tok",
        "walletAddress": "0x" + "ab" * 20, "accountId": "12345", "enableRateLimit": False, "twofa": "JBSWY3DPEHPK3PXP",
        "options": options,
    }  # fmt: skip


@pytest.fixture(scope="module")
def frozen() -> Iterator[None]:
    """ccxt's clock stands still, and its ids come from a seeded generator (`asked`)."""
    clock = types.SimpleNamespace(
        **{name: getattr(time, name) for name in dir(time) if not name.startswith("__")}
        | {"time": lambda: NOW_S, "time_ns": lambda: int(NOW_S * 1_000) * 1_000_000}
    )
    ids = types.SimpleNamespace(
        uuid4=lambda: uuid.UUID(int=random.getrandbits(128)),
        uuid5=uuid.uuid5,
        UUID=uuid.UUID,
        NAMESPACE_DNS=uuid.NAMESPACE_DNS,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["ccxt.base.exchange"], "time", clock)
        patch.setattr(sys.modules["ccxt.base.exchange"], "uuid", ids)
        yield


def endpoints(exchange: Any) -> list[Entry]:
    """Every endpoint of the implicit API, once."""
    found: dict[tuple[str, str, str], Entry] = {}
    for kind in type(exchange).__mro__:
        for value in vars(kind).values():
            if isinstance(value, Entry):
                found.setdefault((value.path, str(value.api), value.method), value)
    return list(found.values())


def asked(exchange: Any, endpoint: Entry) -> Outcome:
    """What `exchange` would send to an endpoint."""
    params = dict.fromkeys(re.findall(r"{(\w+)}", endpoint.path), "1")
    params |= {"symbol": "BTCUSDT", "amount": "1.5", "accountId": "9", "account_id": "9", "clOrdID": "z"}
    return outcome(lambda: exchange.sign(endpoint.path, endpoint.api, endpoint.method, params))


def outcome(call: Any) -> Outcome:
    """What a call made, under ids that are always the same."""
    random.seed(7)
    try:
        made = call()
    except Denied as exc:
        return Outcome(denied=exc.code)
    except Exception as exc:  # noqa: BLE001 - ccxt's own errors are compared as well
        return Outcome(error=f"{type(exc).__name__}: {exc}"[:200])
    return Outcome(request=json.dumps(made, sort_keys=True, default=_plain))


def _plain(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


class Result(msgspec.Struct):
    """How the two compared over many calls."""

    signed: int = 0
    unsigned: int = 0
    failed: int = 0
    different: list[str] = []


def compare(pair: Pair, result: Result, what: str, software: Outcome, token_call: Any) -> None:
    """Count one case: `software` said so, `token_call` gives the token's outcome."""
    before = sum(pair.keys.used.values())
    token = token_call()
    if software.error:
        # ccxt itself cannot: what counts is that nothing is sent here either.
        result.failed += 1
        if token.request:
            result.different.append(f"{what}: software {software.error}, token sends")
    elif token != software:
        result.different.append(f"{what}: {software.request[:200]} | {token}")
    elif sum(pair.keys.used.values()) > before:
        result.signed += 1
    else:
        result.unsigned += 1
