"""ccxt's exchange classes whose signatures come from `SigningKeys`: sync, async, and pro (websockets).

Rules:

- The instance holds a handle (`handles`) where ccxt looks for the secret.  What its `sign` and its websocket login hand to
  ccxt's cryptography goes to the keys; cryptography with anything but the handle is refused, so no key is ever used
  that is not in the token.
- What leaves, by `fetch`, by a websocket or as the result of `sign`, holds no trace of the handle, or is refused.
- Only the module of the one exchange is imported; ccxt whole takes 33 MB and a second more.

ccxt is not trusted: an attacker who controls what it asks to have signed has it signed, here; who moves money checks it
before (`tallystick.venues.capture`).
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import importlib
import sys
from collections.abc import Callable
from typing import Any, Final, Literal, Never, cast

from tallystick.runtime import lean
from tallystick.schemas.errors import ConfigError
from tallystick.venues import Denied
from tallystick.venues.signing.handles import SecretBytes, SecretText, is_handle, require_no_handle, secret_handle
from tallystick.venues.signing.keys import SigningKeys
from tallystick.venues.signing.schemes import Digest, Scheme, require_signable

Api = Literal["sync", "async", "pro"]
_PACKAGES: Final[dict[Api, str]] = {"sync": "ccxt", "async": "ccxt.async_support", "pro": "ccxt.pro"}
_DIGESTS: Final = ("sha256", "sha384", "sha512")
# SEC 2: the orders of the curves' groups.
ORDERS: Final = {
    "p256": 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
    "secp256k1": 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141,
}
_JWT_DIGEST: Final[dict[str, Digest]] = {"256": "sha256", "384": "sha384", "512": "sha512"}


def base_class(exchange_id: str, api: Api = "sync") -> Any:
    """The class that ccxt has; imports that exchange's modules alone.  Raises `ConfigError` where ccxt has none."""
    require_signable(exchange_id)
    with contextlib.ExitStack() as stack:
        for name in _PACKAGES.values() if api == "pro" else dict.fromkeys(("ccxt", _PACKAGES[api])):
            stack.enter_context(lean.hollow(name))
        # What modules of the websockets take from the package itself.
        known = dict(vars(importlib.import_module("ccxt.base.errors")))
        known["Exchange"] = importlib.import_module("ccxt.base.exchange").Exchange
        vars(sys.modules["ccxt"]).update({key: value for key, value in known.items() if key[0] != "_"})
        try:
            if api == "pro":
                # A pro module finds its parent as an attribute of the package, where the packages' own imports put it.
                package = vars(sys.modules["ccxt"])["async_support"] = sys.modules["ccxt.async_support"]
                rest = getattr(importlib.import_module(f"ccxt.async_support.{exchange_id}"), exchange_id)
                for parent in rest.__mro__:
                    if parent.__module__ == f"ccxt.async_support.{parent.__name__}":
                        setattr(package, parent.__name__, parent)
            return getattr(importlib.import_module(f"{_PACKAGES[api]}.{exchange_id}"), exchange_id)
        except ModuleNotFoundError as exc:
            raise ConfigError("EXCHANGE_UNSIGNABLE", f"ccxt has no {api} API of {exchange_id}: {exc.name}") from exc


def signed_class(exchange_id: str, api: Api, keys: SigningKeys, scheme: Scheme) -> Any:
    """The class of `exchange_id` that signs with `keys`; an instance needs `secret_handle(scheme)` in `scheme.field`.

    Raises `ConfigError` (`EXCHANGE_UNSIGNABLE`).
    """
    if api == "pro" and not scheme.websocket:
        raise ConfigError(
            "EXCHANGE_UNSIGNABLE", f"the websocket login of {exchange_id} is not signed by {scheme.name} in ccxt; use its REST API"
        )
    base = base_class(exchange_id, api)
    return type(f"{exchange_id}_signed", (base,), _hooks(base, Cryptography(keys, scheme)))


def signed_exchange(
    exchange_id: str, api: Api, keys: SigningKeys, scheme_name: str = "", config: dict[str, Any] | None = None
) -> Any:
    """An instance of ccxt's `exchange_id` that signs with `keys`, by the named scheme or else the exchange's first.

    `config` is ccxt's, with the credentials that `Signs.needs` names and no secret.  Raises `ConfigError`.
    """
    signs = require_signable(exchange_id)
    scheme = signs.scheme(scheme_name)
    given = dict(config or {})
    for name in ("secret", "privateKey", "twofa"):
        if given.pop(name, None):
            raise ConfigError("SIGNING_SECRET", f"{name} was given: secrets are in the token and nowhere else")
    given["options"] = {**signs.options, **given.get("options", {})}
    exchange = signed_class(exchange_id, api, keys, scheme)(given)
    setattr(exchange, scheme.field, secret_handle(scheme))
    return exchange


def _no_such_signature(*_: object, **__: object) -> Never:
    raise Denied("SIGNATURE_KIND", "the exchange library asks for a signature that is not the token's")


def _text_or_bytes(data: object) -> bytes:
    if is_handle(data):
        raise Denied("SECRET_USED", "the exchange library tried to have the secret signed")
    if isinstance(data, str):
        return data.encode()
    if isinstance(data, (bytes, bytearray)):
        return bytes(data)
    raise Denied("SIGNATURE_KIND", f"the exchange library wants a {type(data).__name__[:32]} signed, no bytes")


def _digest(algorithm: object) -> Digest:
    name = algorithm if isinstance(algorithm, str) else algorithm().name if callable(algorithm) else ""
    if name not in _DIGESTS:
        raise Denied("SIGNATURE_KIND", f"the exchange library asks for {str(name)[:32]!r}, no SHA-2")
    return cast("Digest", name)


def _written(signature: bytes, form: str) -> Any:
    if form == "hex":
        return signature.hex()
    return base64.b64encode(signature).decode("ascii") if form == "base64" else signature


def _url64(data: bytes) -> str:
    """RFC 7515, section 2: base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


class Cryptography:
    """ccxt's cryptographic functions, over `keys`; each takes ccxt's arguments and gives what ccxt's own gives.

    Only the handle of `scheme` is accepted in the place of the secret; everything else raises `Denied`.
    """

    def __init__(self, keys: SigningKeys, scheme: Scheme) -> None:
        self._keys = keys
        self._scheme = scheme

    def _require(self, kind: str, secret: object) -> tuple[str, ...]:
        if not isinstance(secret, (SecretText, SecretBytes)) or secret.scheme is not self._scheme:
            raise Denied("SIGNATURE_KIND", "the exchange library signs with another secret than the token's")
        if kind != self._scheme.kind:
            raise Denied("SIGNATURE_KIND", f"{kind} with a key for {self._scheme.name}")
        if kind != "hmac" and secret.transforms not in self._scheme.forms:
            raise Denied("SECRET_USED", f"the exchange library signs with a part of the secret: {secret.transforms}")
        return secret.transforms

    def hmac(self, request: object, secret: object, algorithm: object = hashlib.sha256, digest: str = "hex") -> Any:
        """HMAC, as text in `digest` or as bytes."""
        form, name = self._require("hmac", secret), _digest(algorithm)
        if (form, name) not in self._scheme.macs:
            raise Denied("SIGNATURE_KIND", f"HMAC with {name} of {'+'.join(form)}, which {self._scheme.name} is not")
        return _written(self._keys.mac(form, name, _text_or_bytes(request)), digest)

    def rsa(self, request: object, secret: object, alg: str = "sha256", padding_mode: str = "pkcs1") -> str:
        """RSASSA-PKCS1-v1_5, in base64."""
        self._require("rsa", secret)
        if padding_mode != "pkcs1":
            _no_such_signature()
        return base64.b64encode(self._keys.rsa(_text_or_bytes(request), _digest(alg))).decode("ascii")

    def eddsa(self, request: object, secret: object, curve: str = "ed25519", url_encode: bool = False) -> str:
        """Ed25519, in base64 or base64url."""
        self._require("ed25519", secret)
        if curve != "ed25519":
            _no_such_signature()
        signature = self._keys.ed25519(_text_or_bytes(request))
        return _url64(signature) if url_encode else base64.b64encode(signature).decode("ascii")

    def ecdsa(
        self,
        request: object,
        secret: object,
        algorithm: str = "p256",
        hash: str | None = None,  # noqa: A002 - the name that ccxt gives it
        fixed_length: bool = False,
    ) -> dict[str, Any]:
        """ECDSA over a digest in hex, or over a text that `hash` makes one of: `r` and `s` in hex, `s` low, and `v`."""
        if algorithm not in ORDERS:
            _no_such_signature()
        self._require(algorithm, secret)
        data = _text_or_bytes(request)
        try:
            digest = hashlib.new(_digest(hash), data).digest() if hash else base64.b16decode(data, casefold=True)
        except ValueError as exc:
            raise Denied("SIGNATURE_KIND", "the exchange library wants no hexadecimal digest signed") from exc
        if len(digest) != 32:
            raise Denied("SIGNATURE_KIND", f"a digest of {len(digest)} bytes for {algorithm}, which signs 32")
        r, s = self._keys.ecdsa(digest)
        s = min(s, ORDERS[algorithm] - s)
        v = self._recovery_id(digest, r, s) if algorithm == "secp256k1" else None
        return {"r": f"{r:064x}", "s": f"{s:064x}", "v": v}

    def _recovery_id(self, digest: bytes, r: int, s: int) -> int:
        """Which of the points with this `r` makes our public key of the signature (SEC 1, 4.1.6)."""
        # ccxt's own library for this curve.
        coincurve = importlib.import_module("coincurve")
        raw, public = r.to_bytes(32, "big") + s.to_bytes(32, "big"), self._keys.public()
        for v in range(4):
            try:
                found = coincurve.PublicKey.from_signature_and_message(raw + bytes([v]), digest, hasher=None)
            except Exception:  # noqa: BLE001, S112 - it raises its own kinds for a point that there is not
                continue
            if found.format(compressed=False) == public:
                return v
        raise Denied("SIGNATURE_KIND", "the token's signature does not belong to its public key")

    def jwt(
        self,
        request: object,
        secret: object,
        algorithm: str = "sha256",
        is_rsa: bool = False,
        opts: dict[str, Any] | None = None,
    ) -> str:
        """A JSON Web Token (RFC 7519) over the claims `request`."""
        options = opts or {}
        alg = str(options.get("alg") or ("RS" if is_rsa else "HS") + algorithm[3:])
        header = {"alg": alg, "typ": "JWT"} | {k: options[k] for k in ("kid", "nonce") if options.get(k) is not None}
        require_no_handle(header, request)
        json = _module("ccxt.base.exchange").Exchange.json
        token = f"{_url64(json(header).encode())}.{_url64(json(request).encode())}"
        if alg[:2] == "Ed":
            return f"{token}.{self.eddsa(token, secret, 'ed25519', True)}"
        digest = _JWT_DIGEST.get(alg[2:], "sha256")
        if digest != algorithm or (alg[:2] == "RS") != is_rsa:
            _no_such_signature()
        if alg[:2] == "RS":
            signature = base64.b64decode(self.rsa(token, secret, digest))
        elif alg == "ES256":
            made = self.ecdsa(token, secret, "p256", digest)
            signature = bytes.fromhex(made["r"] + made["s"])
        elif alg[:2] == "HS":
            signature = self.hmac(token, secret, digest, "binary")
        else:
            _no_such_signature()
        return f"{token}.{_url64(signature)}"

    def address(self, secret: object) -> str:
        """The Ethereum address of the key: the last 20 bytes of Keccak-256 of its public point."""
        self._require("secp256k1", secret)
        keccak = _module("ccxt.static_dependencies.keccak")
        return "0x" + bytes(keccak.SHA3(self._keys.public()[1:]))[-20:].hex()


def _hooks(base: Any, made: Cryptography) -> dict[str, Any]:
    """What stands in a subclass of ccxt's class `base` in place of ccxt's own."""
    own = _module("ccxt.base.exchange").Exchange

    def on_handle(name: str, derived: Callable[[Any], Any]) -> Any:
        function = getattr(own, name)
        return staticmethod(lambda value, *rest: derived(value) if is_handle(value) else function(value, *rest))

    def hash_(request: Any, algorithm: str = "md5", digest: str = "hex") -> Any:
        if not is_handle(request):
            return own.hash(request, algorithm, digest)
        derived = request.derive(algorithm, SecretText)
        # aster keeps the hash of the key to know whether it is still the same; it is never sent.
        return "of the key in the token" if algorithm == "keccak" else derived

    def sign(self: Any, *args: Any, **kwargs: Any) -> Any:
        request = base.sign(self, *args, **kwargs)
        require_no_handle(request.get("url"), request.get("headers"), request.get("body"))
        return request

    def fetch(self: Any, url: str, method: str = "GET", headers: Any = None, body: Any = None) -> Any:
        require_no_handle(url, headers, body)
        return base.fetch(self, url, method, headers, body)

    def client(self: Any, url: str) -> Any:
        require_no_handle(url)
        found = base.client(self, url)
        if not getattr(found, "sends_no_handle", False):
            send = found.send

            def checked(message: Any) -> Any:
                require_no_handle(message)
                return send(message)

            found.send, found.sends_no_handle = checked, True
        return found

    return {
        "hmac": staticmethod(made.hmac),
        "rsa": staticmethod(made.rsa),
        "eddsa": staticmethod(made.eddsa),
        "ecdsa": staticmethod(made.ecdsa),
        "jwt": staticmethod(made.jwt),
        "eth_get_address_from_private_key": staticmethod(made.address),
        "totp": staticmethod(_no_such_signature),
        "starknet_sign": staticmethod(_no_such_signature),
        "base64_to_binary": on_handle("base64_to_binary", lambda h: h.derive("base64-decode", SecretBytes)),
        "base58_to_binary": on_handle("base58_to_binary", lambda h: h.derive("base58-decode", SecretBytes)),
        "string_to_base64": on_handle("string_to_base64", lambda h: h.derive("base64-encode")),
        "remove0x_prefix": on_handle("remove0x_prefix", lambda h: h.derive("without-0x")),
        # lbank would make a PEM of the secret.
        "convert_secret_to_pem": lambda _, secret: secret if is_handle(secret) else _no_such_signature(),
        "hash": staticmethod(hash_),
        "sign": sign,
        "fetch": fetch,
        "client": client,
    }


def _module(name: str) -> Any:
    """A module of ccxt, without the package's hundred exchanges."""
    with lean.hollow("ccxt"):
        return importlib.import_module(name)
