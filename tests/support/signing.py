"""Two of every exchange of ccxt, one with its secret in software and one with it in a token, for comparing what they sign.

Time, nonces, uuids and randomness stand still, so that both say the same or something is wrong.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import random
import re
import sys
import time
import types
import uuid
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import ccxt
import pytest
from ccxt.base.types import Entry
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, utils
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tallystick.runtime.keys import hsm
from tallystick.runtime.keys.keystore import Secret
from tallystick.schemas.errors import TallystickError
from tallystick.venues.signing import Scheme, SigningKeys, base_class, require_signable, signed_exchange
from tallystick.venues.signing.exchange import Api
from tallystick.venues.signing.schemes import EXCHANGES, Digest, Form, Signs
from tallystick.venues.signing.token import TokenKeys, import_credential
from tests.support import world

# ccxt.base is also the name of something else in it.
ccxt_base = sys.modules["ccxt.base.exchange"]
PIN = Secret("password-of-a-test")
NOW_S = 1_760_000_000.123
SIGNABLE = sorted(name for name, entry in EXCHANGES.items() if isinstance(entry, Signs))

# --- secrets -----------------------------------------------------------------------------------------


@cache
def rsa_key(label: str) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def _scalar(label: str) -> int:
    return int.from_bytes(world.seed(label), "big") >> 1


def _pem(key: Any, form: PrivateFormat = PrivateFormat.PKCS8) -> str:
    return str(key.private_bytes(Encoding.PEM, form, NoEncryption()).decode())


@cache
def secret_of(scheme: Scheme, label: str = "exchange") -> str:
    """A secret as the exchange would show it."""
    seed = world.seed(label)
    key = ed25519.Ed25519PrivateKey.from_private_bytes(seed)
    if scheme.kind == "hmac":
        # Some tell the kind of a secret by its length.
        length = len(scheme.shape) if len(scheme.shape) in {43, 44} else 32
        return base64.b64encode(seed + seed).decode()[:length]
    if scheme.written == "hex":
        return f"0x{_scalar(label):064x}"
    if scheme.kind == "rsa":
        pem = _pem(rsa_key(label))
        return pem if scheme.written == "pem" else "".join(pem.splitlines()[1:-1])
    if scheme.kind == "p256":
        return _pem(ec.derive_private_key(_scalar(label), ec.SECP256R1()), PrivateFormat.TraditionalOpenSSL)
    if scheme.written == "pem":
        return _pem(key)
    both = seed + key.public_key().public_bytes_raw()
    if scheme.written == "base64":
        return base64.b64encode(both).decode()
    if scheme.written == "base58":
        return str(ccxt.Exchange.binary_to_base58(both))
    return "ed25519:" + str(ccxt.Exchange.binary_to_base58(seed))


class CountingKeys:
    """`SigningKeys` that says how often it was asked.

    An ECDSA signature of the token is verified, and the one that ccxt would have made (RFC 6979) is given in its place, so
    that everything else can be compared byte by byte.
    """

    def __init__(self, keys: SigningKeys, scheme: Scheme, label: str = "exchange") -> None:
        self._keys = keys
        self._scheme = scheme
        self._label = label
        self.uses = 0
        self.verified = 0

    def mac(self, transforms: Form, algorithm: Digest, data: bytes) -> bytes:
        self.uses += 1
        return self._keys.mac(transforms, algorithm, data)

    def ed25519(self, data: bytes) -> bytes:
        self.uses += 1
        return self._keys.ed25519(data)

    def rsa(self, data: bytes, digest: Digest) -> bytes:
        self.uses += 1
        return self._keys.rsa(data, digest)

    def ecdsa(self, digest: bytes) -> tuple[int, int]:
        self.uses += 1
        curve = ec.SECP256R1() if self._scheme.kind == "p256" else ec.SECP256K1()
        twin = ec.derive_private_key(_scalar(self._label), curve)
        prehashed = utils.Prehashed(hashes.SHA256())
        twin.public_key().verify(utils.encode_dss_signature(*self._keys.ecdsa(digest)), digest, ec.ECDSA(prehashed))
        self.verified += 1
        made = twin.sign(digest, ec.ECDSA(prehashed, deterministic_signing=True))
        return utils.decode_dss_signature(made)

    def public(self) -> bytes:
        return self._keys.public()


class Credentials:
    """A SoftHSM token that holds the secret of every scheme; one is imported when it is first asked for."""

    def __init__(self, token: hsm.Token) -> None:
        self._token = token
        self._ids: dict[tuple[Scheme, str], bytes] = {}

    def keys(self, scheme: Scheme, label: str = "exchange") -> TokenKeys:
        # The shape is ccxt's affair; the same secret is the same key.
        like = (scheme.kind, scheme.written, scheme.macs, secret_of(scheme, label))
        key_id = hashlib.sha256(repr(like).encode()).hexdigest()[:16].encode()
        if (scheme, label) not in self._ids:
            if key_id not in self._ids.values():
                import_credential(self._token, key_id, "exchange", scheme, Secret(secret_of(scheme, label)))
            self._ids[scheme, label] = key_id
        return TokenKeys(self._token, key_id, scheme)


@contextlib.contextmanager
def credentials(folder: Path) -> Iterator[Credentials]:
    hsm.create_token(folder / "exchanges", "exchanges", PIN, PIN)
    with hsm.Token.open(folder / "exchanges", "exchanges", PIN, writable=True) as token:
        yield Credentials(token)


# --- standing still ----------------------------------------------------------------------------------


class _Time(types.ModuleType):
    """The module `time`, whose clock stands."""

    def __init__(self) -> None:
        super().__init__("time")
        self.time: Callable[[], float] = lambda: NOW_S
        self.time_ns: Callable[[], int] = lambda: int(NOW_S * 1_000) * 1_000_000

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


class _Uuid(types.ModuleType):
    """The module `uuid`, whose random ones come from the seed."""

    def __init__(self) -> None:
        super().__init__("uuid")
        self.uuid4: Callable[[], uuid.UUID] = lambda: uuid.UUID(int=random.getrandbits(128), version=4)

    def __getattr__(self, name: str) -> Any:
        return getattr(uuid, name)


@contextlib.contextmanager
def frozen() -> Iterator[None]:
    """ccxt without time and chance; and with its keys in software parsed once, which takes it 40 ms a signature."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ccxt_base, "time", _Time())
        patch.setattr(ccxt_base, "uuid", _Uuid())
        load = ccxt_base.load_pem_private_key
        patch.setattr(ccxt_base, "load_pem_private_key", cache(lambda data, *_: load(data, None)))
        yield


# --- pairs -------------------------------------------------------------------------------------------

API_KEYS = {
    ("coinbase", "ecdsa-p256"): "organizations/1/apiKeys/2",
    ("coinbaseinternational", "ecdsa-p256"): "organizations/1/apiKeys/2",
    ("coinbaseinternational", "hmac-sha256"): "eightcha",
    ("gemini", "hmac-sha384"): "account-key",
}
# Where the endpoints want what a login gave, and the signature is the login's.
TOKENS = {("coinbaseinternational", "p256"), ("coinbaseinternational", "ed25519")}


def config(exchange_id: str, scheme: Scheme) -> dict[str, Any]:
    return {
        "apiKey": API_KEYS.get((exchange_id, scheme.name), "key"),
        "password": "passphrase",
        "uid": "12345",
        "login": "login",
        "walletAddress": "0x" + "ab" * 20,
        "accountId": "12345",
        "enableRateLimit": False,
        # What a login would have left.
        "options": {
            **require_signable(exchange_id).options,
            "accessToken": "token",
            "expires": 10**15,
            "AuthCookieValue": "cookie",
            "AuthAccountId": "1",
            "accountId": "12345",
            **({"v2AccessToken": "token"} if (exchange_id, scheme.kind) in TOKENS else {}),
        },
    }


def plain(exchange_id: str, api: Api, scheme: Scheme, label: str = "exchange") -> Any:
    """ccxt with the secret in software."""
    random.seed(3)
    exchange = base_class(exchange_id, api)(config(exchange_id, scheme))
    secret = secret_of(scheme, label)
    setattr(exchange, scheme.field, secret)
    if scheme.written == "pem-body":
        # ccxt drops the last line of the PEM that it makes.
        exchange.options |= {"cacheSecretAsPem": True, "pem": _pem(rsa_key(label))}
    return exchange


def in_token(exchange_id: str, api: Api, scheme: Scheme, keys: SigningKeys) -> Any:
    """ccxt with the secret in the token."""
    random.seed(3)
    return signed_exchange(exchange_id, api, keys, scheme.name, config(exchange_id, scheme))


def endpoints(exchange: Any) -> list[Entry]:
    """Every endpoint of ccxt's implicit API, each once."""
    found = {
        (entry.path, str(entry.api), entry.method): entry
        for cls in type(exchange).__mro__
        for entry in vars(cls).values()
        if isinstance(entry, Entry)
    }
    return [found[key] for key in sorted(found)]


def schemes(exchange_id: str) -> tuple[Scheme, ...]:
    return require_signable(exchange_id).schemes


def _shown(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else str(value)


def outcome(call: Callable[[], Any]) -> tuple[str, str]:
    """What came of a call: its result, or which error with which text."""
    random.seed(7)
    try:
        result = call()
    except TallystickError as exc:
        return "refused", exc.code
    except Exception as exc:  # noqa: BLE001 - ccxt's own errors and its bugs alike are compared
        return "error", f"{type(exc).__name__}: {exc}"
    return "ok", json.dumps(result, default=_shown)


def request(exchange: Any, entry: Entry) -> tuple[str, str]:
    """What `sign` makes of an endpoint."""
    parameters = dict.fromkeys(re.findall(r"{(\w+)}", entry.path), "1")
    parameters |= {"symbol": "BTCUSDT", "amount": "1.5", "accountId": "9", "account_id": "9", "clOrdID": "z"}
    return outcome(lambda: exchange.sign(entry.path, entry.api, entry.method, parameters))
