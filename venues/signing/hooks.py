"""What ccxt's exchanges call to sign, with keys in a token instead (`handle`): a class to put before any exchange's own.

ccxt (4.5) signs by the static methods of `Exchange`: `hmac`, `rsa`, `eddsa`, `ecdsa`, `jwt`; and prepares secrets by others,
which are here where they would read one.

- Only a handle signs by a key pair: keys that ccxt would derive or be given in plaintext (Polymarket's trading sessions,
  Pacifica's sub-accounts) are refused.  HMAC with something else is ccxt's own: KuCoin's requests name ccxt as a broker so.
- ECDSA signatures get the lower `s` (BIP 62) and, on secp256k1, the recovery id `v`, as ccxt's own have.  A token draws its own
  nonce where ccxt derives it (RFC 6979): both verify, their bytes differ.
- RSA-PSS is refused: no exchange that ccxt has wants it.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
from typing import Any, Final, Never

from tallystick.venues import Denied
from tallystick.venues.signing.handle import is_handle

# SEC 2: the orders of the groups.
ORDERS: Final = {
    "p256": 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
    "secp256k1": 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141,
}


def _refuse(*_: object, **__: object) -> Never:
    raise Denied("SIGNATURE_KIND", "a way to sign that no exchange is known to want")


def _base() -> Any:
    # By name: ccxt ships no types.
    return importlib.import_module("ccxt.base.exchange").Exchange


def _name(algorithm: Any) -> str:
    """`sha256` of hashlib's function or of its name."""
    return algorithm if isinstance(algorithm, str) else str(algorithm().name)


def _shown(binary: bytes, form: str) -> Any:
    if form == "hex":
        return binary.hex()
    return base64.b64encode(binary).decode("ascii") if form == "base64" else binary


def recovery_id(point: bytes, digest: bytes, r: int, s: int) -> int:
    """The `v` (0 or 1) of a secp256k1 signature with a low `s` by the key with public `point` (SEC 1, 4.1.6).

    Raises `Denied` where neither recovers the key: the signature is not that key's.
    """
    coincurve = importlib.import_module("coincurve")
    compact = r.to_bytes(32, "big") + s.to_bytes(32, "big")
    for v in (0, 1):
        try:
            found = coincurve.PublicKey.from_signature_and_message(compact + bytes([v]), digest, hasher=None)
        except ValueError:
            continue
        if found.format(compressed=False)[1:] == point:
            return v
    raise Denied("SIGNATURE_KIND", "the token's signature is not of its own key")


class Hooks:
    """Put before an exchange's class: `type("…", (Hooks, ccxt.kraken), {})`."""

    @staticmethod
    def encode(string: Any) -> Any:
        """UTF-8."""
        return string.encode("utf-8")

    @staticmethod
    def decode(string: Any) -> Any:
        """UTF-8."""
        return string.decode("utf-8")

    @staticmethod
    def base64_to_binary(s: Any) -> Any:
        """Recorded for a handle."""
        return s.as_bytes("base64") if is_handle(s) else _base().base64_to_binary(s)

    @staticmethod
    def base58_to_binary(s: Any) -> Any:
        """Recorded for a handle."""
        return s.as_bytes("base58") if is_handle(s) else _base().base58_to_binary(s)

    @staticmethod
    def base16_to_binary(s: Any) -> Any:
        """Recorded for a handle."""
        return s.as_bytes("base16") if is_handle(s) else _base().base16_to_binary(s)

    @staticmethod
    def string_to_base64(s: Any) -> Any:
        """Recorded for a handle."""
        return s.as_text("tobase64") if is_handle(s) else _base().string_to_base64(s)

    @staticmethod
    def binary_to_base64(s: Any) -> Any:
        """Recorded for a handle."""
        return s.as_text("tobase64") if is_handle(s) else _base().binary_to_base64(s)

    @staticmethod
    def remove0x_prefix(value: Any) -> Any:
        """A handle has none."""
        return value if is_handle(value) else _base().remove0x_prefix(value)

    @staticmethod
    def hash(request: Any, algorithm: str = "md5", digest: str = "hex") -> Any:
        """Recorded for a handle."""
        return request.as_text(algorithm) if is_handle(request) else _base().hash(request, algorithm, digest)

    @staticmethod
    def hmac(request: bytes, secret: Any, algorithm: Any = hashlib.sha256, digest: str = "hex") -> Any:
        """RFC 2104."""
        if not is_handle(secret):
            return _base().hmac(request, secret, algorithm, digest)
        return _shown(secret.keys.mac(secret.transforms, _name(algorithm), bytes(request)), digest)

    @staticmethod
    def rsa(request: str, secret: Any, alg: str = "sha256", padding_mode: str = "pkcs1") -> Any:
        """RFC 8017, 8.2; base64."""
        if not is_handle(secret):
            _refuse()
        if padding_mode != "pkcs1":
            _refuse()
        return _shown(secret.keys.rsa(request.encode("utf-8"), alg), "base64")

    @staticmethod
    def eddsa(request: bytes, secret: Any, curve: str = "ed25519", url_encode: bool = False) -> Any:
        """RFC 8032; base64."""
        if not is_handle(secret):
            _refuse()
        if curve != "ed25519":
            _refuse()
        signature = secret.keys.ed25519(bytes(request))
        return _base().binary_to_urlencoded_base64(signature) if url_encode else _shown(signature, "base64")

    @staticmethod
    def ecdsa(
        request: Any,
        secret: Any,
        algorithm: str = "p256",
        hash: str | None = None,
        fixed_length: bool = False,  # noqa: ARG004 - ccxt's own ignores it as well
    ) -> Any:
        """FIPS 186-5; `r` and `s` as hex of 64 digits, and `v`."""
        if not is_handle(secret):
            _refuse()
        if algorithm not in ORDERS:
            _refuse()
        encoded = _base().encode(request) if isinstance(request, str) else request
        digest = _base().hash(encoded, hash, "binary") if hash else base64.b16decode(encoded, casefold=True)
        r, s = secret.keys.ecdsa(digest, encoded if hash else b"")
        s = min(s, ORDERS[algorithm] - s)
        v = recovery_id(secret.keys.point, digest, r, s) if algorithm == "secp256k1" else None
        return {"r": f"{r:064x}", "s": f"{s:064x}", "v": v}

    @staticmethod
    def jwt(request: Any, secret: Any, algorithm: str = "sha256", is_rsa: bool = False, opts: Any = None) -> str:
        """RFC 7515, compact."""
        opts = opts or {}
        if not is_handle(secret):
            _refuse()
        base = _base()
        alg = opts.get("alg") or ("RS" if is_rsa else "HS") + algorithm[3:]
        header = {"alg": alg, "typ": "JWT"} | {k: opts[k] for k in ("kid", "nonce") if opts.get(k) is not None}
        token = ".".join(base.urlencode_base64(base.encode(base.json(part))) for part in (header, request))
        keys: Any = secret.keys
        match alg[:2]:
            case "RS":
                signature = keys.rsa(token.encode("ascii"), algorithm)
            case "ES":
                made_of = Hooks.ecdsa(token, secret, "p256", algorithm)
                signature = bytes.fromhex(made_of["r"] + made_of["s"])
            case "Ed":
                signature = keys.ed25519(token.encode("ascii"))
            case "HS":
                signature = keys.mac(secret.transforms, algorithm, token.encode("ascii"))
            case _:
                _refuse()
        return f"{token}.{base.urlencode_base64(signature)}"

    @staticmethod
    def eth_get_address_from_private_key(private_key: Any) -> Any:
        """The wallet's address, from the token's public key."""
        if not is_handle(private_key):
            _refuse()
        return f"0x{_base().hash(private_key.keys.point, 'keccak', 'binary')[-20:].hex()}"

    @staticmethod
    def totp(key: Any) -> Any:
        """A second factor is a secret as well, and none is kept here."""
        return _refuse() if is_handle(key) else _base().totp(key)

    def array_slice(self, array: Any, first: Any, second: Any = None) -> Any:
        """Recorded for a handle."""
        return array[first:second] if second else array[first:]
