"""Requests built by ccxt, captured unsent: checked before they are signed, and compared whole before they leave.

Rules, in this order, for every request:

- ccxt holds no secret but a handle (`signing.handle`), whose key signs in one way, by one scheme.  Any other way to sign, with
  whatever key, is refused; so is a form of the secret that the scheme does not know.
- ccxt's clock stands at the time that the request is built for.  Markets are given to it; what it would load is refused.
- What ccxt wants signed is shown to the operation's `check` first.  It raises unless that says what was asked for and nothing
  else; the key has not been used then.  One signature a request.
- ccxt's `fetch` is replaced: it captures, and ends the call.  Nothing is ever sent from here.
- Exactly one request was captured, and it equals, whole, the one that the operation's `request` makes of what was signed:
  method, address, headers and body.  So what a signature does not cover is compared all the same.

An operation of a venue (`Operation`) is two pure functions, over `parse_form`, `parse_json`, `parse_jwt` and `require_same`; the rest
is here.  What a request may do with a signature that does not cover it, when it is in other hands, no check here can
change: that is for the venue's documents to say (docs/add-a-venue.md).

ccxt is not trusted: an attacker who controls what it returns can at most make the caller refuse; its code runs in the caller's
process, though, so its release is pinned by hash.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, Never, Protocol, TypeVar
from urllib.parse import unquote_to_bytes

import msgspec

from tallystick.schemas.bounds import NS_PER_MS
from tallystick.schemas.errors import TallystickError
from tallystick.schemas.nats_jwt import Signer
from tallystick.venues import Denied
from tallystick.venues.signing.exchange import exchange_class, hooked, placeholder
from tallystick.venues.signing.handle import SigningKeys, handle, is_handle
from tallystick.venues.signing.hooks import ORDERS, Hooks
from tallystick.venues.signing.schemes import Scheme

# ccxt's ways to sign, with the kind of key that each wants.
_WAYS: Final = {"hmac": ("hmac",), "rsa": ("rsa",), "eddsa": ("ed25519",), "ecdsa": ("p256", "secp256k1")}
# What nobody here has a reason to call.
_NEVER: Final = ("totp", "eth_sign_message", "starknet_sign", "eth_get_address_from_private_key")
# A symbol may hold letters of any script, and a time has colons, which stand percent-encoded: one way to write each.
_FIELD: Final = re.compile(r"([A-Za-z_]+)=((?:[A-Za-z0-9._-]|%3A|%[89A-F][0-9A-F])+)")


class Request(msgspec.Struct, frozen=True):
    """A request as ccxt would send it."""

    method: str
    url: str
    headers: dict[str, str]
    body: str = ""


class Asked(msgspec.Struct, frozen=True):
    """What ccxt wants signed: `data`; and what it hashed on the way there, by digest, for data that holds one."""

    data: bytes
    hashed: Mapping[bytes, bytes]

    def text(self) -> str:
        """`data`, which is ASCII.  Raises `Denied`."""
        return _ascii(self.data)

    def preimage(self, digest: bytes) -> str:
        """The text of which ccxt made `digest`.  Raises `Denied` where it made none."""
        try:
            return _ascii(self.hashed[digest])
        except KeyError as exc:
            raise Denied("FIELD_MISMATCH", "what is to be signed holds the digest of something unknown") from exc


class Signed(Asked, frozen=True):
    """What was signed; `signature` is raw: the MAC, the 64 bytes of Ed25519, RSA's, or ECDSA's `r` and low `s` of 32 bytes each."""

    signature: bytes


class Operation(Protocol):
    """One thing to do at the venue: the one text that may be signed for it, and the one request that may then leave.

    Pure; both raise `Denied` where they find anything but what was asked for.
    """

    def check(self, asked: Asked) -> None:
        """Raise unless what is to be signed says exactly this operation; nothing is signed yet."""

    def request(self, signed: Signed) -> Request:
        """The request that carries what was signed, to the last letter."""


Op = TypeVar("Op", bound=Operation)


class Captured(Exception):
    """Ends ccxt's call with the request that it would have sent."""

    def __init__(self, url: str, method: str, headers: dict[str, str] | None, body: str | None) -> None:
        super().__init__("captured")
        self.request = Request(method, url, headers or {}, body or "")


class Ed25519Keys:
    """`SigningKeys` of one Ed25519 key."""

    point = b""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer

    def ed25519(self, data: bytes) -> bytes:
        """See `SigningKeys`."""
        return self._signer.sign(data)

    def mac(self, *_: object) -> Never:
        """Refused, as every other way."""
        _refuse()

    rsa = ecdsa = mac


def _refuse(*_: object, **__: object) -> Never:
    raise Denied("SIGNATURE_KIND", "only the scheme's own signature with the token's key is made")


def _unreachable(*_: object, **__: object) -> Never:
    raise Denied("ENDPOINT", "the exchange library tried to load what it was not given")


class Capture:
    """One exchange of ccxt, which builds requests for `keys` to sign and sends none.

    `config` is ccxt's, without secrets; `clock` gives Unix nanoseconds; `jwt`: the exchange takes JSON Web Tokens alone.  Not
    for use from several threads: one request is built at a time.
    """

    def __init__(
        self,
        exchange_id: str,
        scheme: Scheme,
        keys: SigningKeys,
        config: dict[str, Any],
        clock: Callable[[], int],
        *,
        jwt: bool = False,
    ) -> None:
        self._scheme = scheme
        self._keys = keys
        self._clock = clock
        self._operation: Operation | None = None
        self._signed: Signed | None = None
        self._hashed: dict[bytes, bytes] = {}
        self._captures = 0
        self.now_ms = 0
        base = hooked(exchange_class(exchange_id, "sync"))
        self.exchange: Any = type(f"{exchange_id}_in_custody", (base,), self._namespace(jwt))(
            {"enableRateLimit": False, **config}
        )
        guard = _Guard(self._sign, scheme.kind, keys)
        setattr(self.exchange, scheme.field, handle(guard, placeholder(scheme), scheme.chains))
        self.exchange.session = None

    def _namespace(self, jwt: bool) -> dict[str, Any]:
        own = {"jwt"} if jwt else {name for name, kinds in _WAYS.items() if self._scheme.kind in kinds}
        names = (*_WAYS, "jwt", *_NEVER)
        namespace: dict[str, Any] = {name: staticmethod(_refuse) for name in names if name not in own}
        namespace |= {name: staticmethod(_by_handle(getattr(Hooks, name))) for name in own}

        def fetch(_: object, url: str, method: str = "GET", headers: Any = None, body: Any = None) -> Never:
            self._captures += 1
            raise Captured(url, method, headers, body)

        def hash_(request: Any, algorithm: str = "md5", digest: str = "hex") -> Any:
            if not is_handle(request) and algorithm in ("sha256", "sha512"):
                self._hashed[hashlib.new(algorithm, request).digest()] = bytes(request)
            return Hooks.hash(request, algorithm, digest)

        return namespace | {
            "fetch": fetch,
            "hash": staticmethod(hash_),
            "load_markets": _unreachable,
            "milliseconds": staticmethod(lambda: self.now_ms),
            "microseconds": staticmethod(lambda: self.now_ms * 1_000),
            "seconds": staticmethod(lambda: self.now_ms // 1_000),
            "nonce": staticmethod(lambda: self.now_ms),
        }

    @property
    def idle(self) -> bool:
        """Whether no request is being built: then nothing is signed."""
        return self._operation is None

    def build(self, make: Callable[[int], Operation], call: Callable[[Any], object]) -> tuple[Request, int]:
        """The request that `call` has ccxt build, and its time in Unix milliseconds.

        `make` gives the operation at that time.  Raises `Denied`, and nothing is left behind.
        """
        operation = self._begin(make)
        try:
            call(self.exchange)
        except Captured as captured:
            found = captured.request
        except TallystickError:
            raise
        except Exception as exc:  # ccxt's own errors and its bugs alike: nothing was captured, nothing is signed
            raise Denied(
                "EXCHANGE_LIBRARY", f"the exchange library refused: {type(exc).__name__}: {str(exc)[:200]}"
            ) from exc
        else:
            raise Denied("ENDPOINT", "the exchange library made no request")
        finally:
            self._operation = None
        signed = self._signed
        if signed is None or self._captures != 1:
            raise Denied("ENDPOINT", f"{self._captures} requests, signed: {signed is not None}; expected one")
        wanted = operation.request(signed)
        if found != wanted:
            raise Denied(
                "ENDPOINT",
                f"expected {wanted.method} {wanted.url.partition('?')[0]} as it was signed, "
                f"the request was {found.method[:16]} {found.url.partition('?')[0][:200]}",
            )
        return found, self.now_ms

    def fill(self, make: Callable[[int], Op], data: Callable[[Op], bytes]) -> tuple[Request, int]:
        """As `build`, where ccxt built a request of this kind before: `data` is signed, after the same check."""
        operation = self._begin(make)
        try:
            signed = self._sign(data(operation), self._key)
        finally:
            self._operation = None
        return operation.request(signed), self.now_ms

    def _key(self, data: bytes) -> bytes:
        if self._scheme.kind == "ed25519":
            return self._keys.ed25519(data)
        if self._scheme.kind == "hmac" and len(self._scheme.macs) == 1:
            return self._keys.mac(*self._scheme.macs[0], data)
        _refuse()

    def _begin(self, make: Callable[[int], Op]) -> Op:
        self.now_ms = self._clock() // NS_PER_MS
        self._signed, self._captures, self._hashed = None, 0, {}
        self._operation = operation = make(self.now_ms)
        return operation

    def _sign(self, data: bytes, key: Callable[[bytes], bytes]) -> Signed:
        """`data`, which must say the operation that is asked for, signed by `key`, once."""
        if self._operation is None or self._signed is not None:
            raise Denied("ENDPOINT", "the exchange library wants a signature that nobody asked for")
        self._operation.check(Asked(data, self._hashed))
        self._signed = signed = Signed(data, self._hashed, key(data))
        return signed


class _Guard:
    """`SigningKeys` that have everything checked by `sign` before a key is used."""

    def __init__(self, sign: Callable[[bytes, Callable[[bytes], bytes]], Signed], kind: str, keys: SigningKeys) -> None:
        self._sign = sign
        self._kind = kind
        self._keys = keys

    def _require(self, *kinds: str) -> None:
        if self._kind not in kinds:
            _refuse()

    def mac(self, transforms: tuple[str, ...], algorithm: str, data: bytes) -> bytes:
        """See `SigningKeys`."""
        self._require("hmac")
        return self._sign(data, lambda checked: self._keys.mac(transforms, algorithm, checked)).signature

    def ed25519(self, data: bytes) -> bytes:
        """See `SigningKeys`."""
        self._require("ed25519")
        return self._sign(data, self._keys.ed25519).signature

    def rsa(self, data: bytes, algorithm: str) -> bytes:
        """See `SigningKeys`."""
        self._require("rsa")
        return self._sign(data, lambda checked: self._keys.rsa(checked, algorithm)).signature

    def ecdsa(self, digest: bytes, of: bytes = b"") -> tuple[int, int]:
        """See `SigningKeys`; a digest of something unknown cannot be checked, and is refused."""
        self._require("p256", "secp256k1")
        if hashlib.sha256(of).digest() != digest:
            raise Denied("FIELD_MISMATCH", "the digest of something unknown was to be signed")

        def sign(_: bytes) -> bytes:
            r, s = self._keys.ecdsa(digest, of)
            return r.to_bytes(32, "big") + min(s, ORDERS[self._kind] - s).to_bytes(32, "big")

        signature = self._sign(of, sign).signature
        return int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")

    @property
    def point(self) -> bytes:
        """See `SigningKeys`."""
        return self._keys.point


def _by_handle(way: Callable[..., Any]) -> Callable[..., Any]:
    """One of ccxt's ways to sign, for the token's key alone."""

    def sign(request: Any, secret: Any, *rest: Any, **options: Any) -> Any:
        return way(request, secret, *rest, **options) if is_handle(secret) else _refuse()

    return sign


# --- reading what is to be signed --------------------------------------------------------------------


def _ascii(data: bytes) -> str:
    try:
        return data.decode("ascii")
    except UnicodeDecodeError as exc:
        raise Denied("FIELD_MISMATCH", "the request is not ASCII") from exc


def parse_form(query: str) -> dict[str, str]:
    """The fields of a raw query or form: none twice, none empty, nothing escaped that need not be.  Raises `Denied`."""
    fields: dict[str, str] = {}
    for part in query.split("&"):
        match = _FIELD.fullmatch(part)
        if match is None:
            raise Denied("FIELD_MISMATCH", f"not a plain field of a request: {part[:64]!r}")
        name, escaped = match.groups()
        if name in fields:
            raise Denied("FIELD_MISMATCH", f"{name} stands twice in the request")
        try:
            fields[name] = unquote_to_bytes(escaped).decode("utf-8")
        except UnicodeDecodeError as exc:
            raise Denied("FIELD_MISMATCH", f"not UTF-8 in a field of a request: {part[:64]!r}") from exc
    return fields


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Denied("FIELD_MISMATCH", "a field stands twice in the request")
    return found


def _no_float(text: str) -> Never:
    raise Denied("FIELD_MISMATCH", f"a number that is no text in the request: {text[:40]!r}")


def parse_json(text: str) -> dict[str, Any]:
    """The fields of a JSON object, written as ccxt writes it.  Raises `Denied`.

    None twice, no number that a float would have to hold, nothing escaped that need not be, no space: two readers read the same.
    """
    try:
        found = json.loads(text, object_pairs_hook=_once, parse_float=_no_float, parse_constant=_no_float)
    except (ValueError, RecursionError) as exc:
        raise Denied("FIELD_MISMATCH", f"not JSON in the request: {text[:64]!r}") from exc
    if not isinstance(found, dict):
        raise Denied("FIELD_MISMATCH", f"no fields in the request: {text[:64]!r}")
    if json.dumps(found, separators=(",", ":"), ensure_ascii=False) != text:
        raise Denied("FIELD_MISMATCH", f"JSON that is written otherwise than need be: {text[:64]!r}")
    return found


def parse_jwt(asked: Asked) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and claims of a JSON Web Token that is to be signed (RFC 7515, 5.1).  Raises `Denied`."""
    parts = asked.text().split(".")
    if len(parts) != 2:
        raise Denied("FIELD_MISMATCH", f"{len(parts)} parts of a token to be signed, expected two")
    try:
        raw = [base64.b64decode(part + "=" * (-len(part) % 4), b"-_", validate=True) for part in parts]
    except ValueError as exc:
        raise Denied("FIELD_MISMATCH", "a token to be signed that is no base64url") from exc
    if [base64.urlsafe_b64encode(part).rstrip(b"=").decode("ascii") for part in raw] != parts:
        raise Denied("FIELD_MISMATCH", "a token to be signed that is written otherwise than base64url writes it")
    header, claims = (parse_json(_ascii(part)) for part in raw)
    return header, claims


def _same(said: object, wanted: object) -> bool:
    """Equal, and of the same types all the way down: `True` is not 1."""
    if type(said) is not type(wanted):
        return False
    if isinstance(said, dict) and isinstance(wanted, dict):
        return said.keys() == wanted.keys() and all(_same(value, wanted[name]) for name, value in said.items())
    if isinstance(said, list) and isinstance(wanted, list):
        return len(said) == len(wanted) and all(map(_same, said, wanted))
    return said == wanted


def require_same(fields: Mapping[str, object], expected: Mapping[str, object]) -> None:
    """Raise `Denied` unless both are equal, naming the first field that is not."""
    if fields.keys() == expected.keys() and all(_same(value, expected[name]) for name, value in fields.items()):
        return
    for name in sorted(expected.keys() | fields.keys()):
        said, wanted = fields.get(name, "nothing"), expected.get(name, "nothing")
        if name not in fields or name not in expected or not _same(said, wanted):
            raise Denied(
                "FIELD_MISMATCH", f"{name}: the request says {str(said)[:64]!r}, the permit {str(wanted)[:64]!r}"
            )
