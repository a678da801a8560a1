"""How each exchange of ccxt signs, one line an exchange: what a token must compute, and who is refused.

- An exchange that is not in `EXCHANGES` is refused, as one that nobody examined.
- A scheme says in which forms ccxt hands the secret to its cryptography.  A form that it does not name is refused, so an
  exchange that begins to sign otherwise is noticed by whoever signs, and by the differential test before that.
- The table says what can be signed, not what may be: an order is signed where an adapter proves what the request says
  (`tallystick.venues.Adapter`).

Source of each line: the exchange's `sign` and its helpers in the pinned ccxt; `tests/interop/test_exchange_signing.py`
compares every private endpoint of every line with ccxt's own signatures.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from tallystick.schemas.errors import ConfigError

Digest = Literal["sha256", "sha384", "sha512"]
Kind = Literal["hmac", "ed25519", "rsa", "p256", "secp256k1"]
# How the person who imports a private key writes it: as the exchange shows it, and as ccxt would take it.
Written = Literal["text", "pem", "pem-body", "base64", "base58", "orderly", "hex"]
# What ccxt does to the secret before it is used, step by step.
Form = tuple[str, ...]

# What stands in the place of every secret; long enough to be nobody's data, and found whatever a request does to letters.
MARK: Final = "TALLYSTICKTOKENSECRET"


class Scheme(msgspec.Struct, frozen=True):
    """One way to sign at an exchange.

    - `name`: for people and for `[venue]`; `kind`: the key; `field`: where ccxt keeps the secret.
    - `macs`: for `hmac`, each form of the secret with its digest: one key of the token each.
    - `forms`: for the other kinds, the forms that stand for the private key.
    - `shape`: what ccxt sees: it takes the presence of a PEM header, a length or a last letter for the kind of key.
    - `written`: how the secret is given at its import.
    - `websocket`: whether the exchange's websocket login, where ccxt has one, signs by it too.
    """

    name: str
    kind: Kind
    field: Literal["secret", "privateKey"]
    macs: tuple[tuple[Form, Digest], ...]
    forms: tuple[Form, ...]
    shape: str
    written: Written
    websocket: bool = True

    def allows(self, form: Form) -> bool:
        """Whether `form` is, or leads to, one that this scheme names."""
        known = (*self.forms, *(form for form, _ in self.macs))
        return any(each[: len(form)] == form for each in known)


class Signs(msgspec.Struct, frozen=True):
    """An exchange whose requests a token can sign; `needs`: the other credentials, which are no secrets of the token."""

    schemes: tuple[Scheme, ...]
    needs: tuple[str, ...] = ("apiKey",)
    options: dict[str, Any] = {}
    remark: str = ""

    def scheme(self, name: str) -> Scheme:
        """The scheme of this name; "" is the first.  Raises `ConfigError`."""
        for scheme in self.schemes:
            if name in ("", scheme.name):
                return scheme
        known = ", ".join(scheme.name for scheme in self.schemes)
        raise ConfigError("EXCHANGE_UNSIGNABLE", f"no scheme {name[:48]!r} here; there is {known}")


class Refused(msgspec.Struct, frozen=True):
    """An exchange whose requests no token can sign."""

    reason: str


def _hmac(
    *digests: Digest, by: Form = ("utf8",), shape: str = MARK, field: Literal["secret", "privateKey"] = "secret"
) -> Scheme:
    return Scheme(
        name="hmac-" + "+".join(digests),
        kind="hmac",
        field=field,
        macs=tuple((by, digest) for digest in digests),
        forms=(),
        shape=shape,
        written="text",
    )


def _ed25519(
    written: Written, *forms: Form, shape: str = MARK, field: Literal["secret", "privateKey"] = "secret"
) -> Scheme:
    return Scheme(
        name="ed25519", kind="ed25519", field=field, macs=(), forms=forms or ((),), shape=shape, written=written
    )


def _secp256k1(*forms: Form) -> Scheme:
    # A private key is read as 0x and 64 digits.
    shape = "0x" + MARK.ljust(64, "0")
    return Scheme(
        name="ecdsa-secp256k1", kind="secp256k1", field="privateKey", macs=(), forms=forms, shape=shape, written="hex"
    )


_PEM: Final = "-----BEGIN PRIVATE KEY-----"
# ccxt takes a PEM of more than 120 letters for RSA, and a shorter one for Ed25519.
_RSA: Final = Scheme("rsa-sha256", "rsa", "secret", (), ((),), _PEM + MARK * 5, "pem")
# lbank's is the base64 between the lines of a PEM, of which ccxt would make one.
_RSA_BODY: Final = Scheme("rsa-sha256", "rsa", "secret", (), (("utf8",),), MARK * 5, "pem-body")
_P256: Final = Scheme("ecdsa-p256", "p256", "secret", (), (("utf8",),), "-----BEGIN EC PRIVATE KEY-----" + MARK, "pem")
# 32 bytes of seed, and 32 of the public key behind them.
_ED25519_BASE64: Final = _ed25519("base64", ("base64-decode", "[0:32]"), shape=MARK + "=")
_ED25519_BASE58: Final = _ed25519("base58", ("base58-decode", "[0:32]"), field="privateKey")
_ORDERLY: Final = _ed25519("orderly", ("after-ed25519:", "base58-decode"), shape="ed25519:" + MARK)
_WALLET: Final = _secp256k1((), ("[-64:]", "[-64:]"))

_PASSWORD: Final = ("apiKey", "password")

_SENT: Final = Refused("its API sends the secret itself with each request")
_STARKNET: Final = Refused(
    "it signs with keys on Starknet's curve, which ccxt derives from the secret; no token has that curve"
)

_256: Final = Signs((_hmac("sha256"),))
_256_PASSWORD: Final = Signs(_256.schemes, _PASSWORD)
_384: Final = Signs((_hmac("sha384"),))
_512: Final = Signs((_hmac("sha512"),))
_512_BASE64: Final = Signs((_hmac("sha512", by=("base64-decode",)),))
# ccxt would sign for itself as a broker, with a key that everybody has; only the token's are used.
_KUCOIN: Final = Signs(
    _256.schemes, _PASSWORD, options={"partner": {"spot": {"id": None}, "future": {"id": None}}}
)
_BINANCE: Final = Signs((_ed25519("pem", shape=_PEM + MARK), *_256.schemes, _RSA))
# ccxt logs in to its websockets with an HMAC whatever the key.
_BYBIT: Final = Signs((*_256.schemes, msgspec.structs.replace(_RSA, websocket=False)))

# A Deribit account at Coinbase, known by its secret of 43 letters, which the login of its websockets sends.
_DERIBIT: Final = msgspec.structs.replace(_256.schemes[0], shape=MARK.ljust(43, "0"), websocket=False)

EXCHANGES: Final[dict[str, Signs | Refused]] = {
    "alpaca": _SENT,
    "apex": Signs((_hmac("sha256", by=("base64-encode", "utf8")),), _PASSWORD),
    "aster": Signs((_secp256k1((), ("[-64:]", "[-64:]"), ("utf8", "keccak")),), ()),
    "backpack": Signs((_ED25519_BASE64,)),
    "bequant": _256,
    "bigone": _256,
    "binance": _BINANCE,
    "binancecoinm": _BINANCE,
    "binanceus": _BINANCE,
    "binanceusdm": _BINANCE,
    "bingx": _256,
    "bit2c": _512,
    "bitbank": _256,
    "bitbns": _512,
    "bitfinex": _384,
    "bitflyer": _256,
    "bitget": _256_PASSWORD,
    "bithumb": Signs((_hmac("sha256", "sha512"),)),
    "bitopro": _384,
    "bitrue": _256,
    "bitso": _256,
    "bitstamp": _256,
    "bitteam": _SENT,
    "bittrade": _256,
    "bitvavo": _256,
    "blockchaincom": _SENT,
    "blofin": _256_PASSWORD,
    "btcbox": Signs((_hmac("sha256", by=("utf8", "md5", "utf8")),)),
    "btcmarkets": _512_BASE64,
    "btcturk": Signs((_hmac("sha256", by=("base64-decode",)),)),
    "btse": _384,
    "bullish": _256,
    "bybit": _BYBIT,
    "bybiteu": _BYBIT,
    "bybitid": _BYBIT,
    "bydfi": _256,
    "cex": _256,
    "coinbase": Signs((_P256, msgspec.structs.replace(_ED25519_BASE64, websocket=False), *_256.schemes)),
    "coinbaseexchange": Signs((_hmac("sha256", by=("base64-decode",)),), _PASSWORD),
    "coinbaseinternational": Signs((_P256, _ED25519_BASE64, _DERIBIT)),
    "coincheck": _256,
    "coinmate": Signs((_hmac("sha256"),), ("apiKey", "uid")),
    "coinone": Signs((_hmac("sha512", by=("upper", "utf8")),)),
    "coinsph": _256,
    "coinspot": _512,
    "cryptocom": _256,
    "cryptomus": Refused("it signs with the MD5 of the request and the secret behind it, which no token computes"),
    "deepcoin": _256_PASSWORD,
    "delta": _256,
    "deribit": _256,
    "derive": Signs((_secp256k1(("[-64:]", "[-64:]"), ("[-64:]", "[-64:]", "[-64:]")),), ("walletAddress",)),
    "digifinex": _256,
    "dydx": Refused("ccxt derives its keys from a signature of the wallet, in plaintext"),
    "extended": _STARKNET,
    "fmfwio": _256,
    "foxbit": _256,
    "gate": _512,
    "gateeu": _512,
    "gemini": _384,
    "grvt": Signs((_secp256k1((), ("without-0x",)),), ()),
    "hashkey": _256,
    "hibachi": Signs(
        # ccxt takes a private key of 44 letters for the secret of an account that the exchange manages.
        (_secp256k1(("[-64:]",)), _hmac("sha256", shape=MARK.ljust(44, "0"), field="privateKey")),
        ("apiKey", "accountId"),
    ),
    "hitbtc": _256,
    "hollaex": _256,
    "htx": _256,
    "hyperliquid": Signs((_WALLET,), ("walletAddress",)),
    "independentreserve": _256,
    "indodax": _512,
    "kraken": _512_BASE64,
    "krakenfutures": _512_BASE64,
    "kucoin": _KUCOIN,
    "kucoinfutures": _KUCOIN,
    "latoken": _512,
    "lbank": Signs((_hmac("sha256"), _RSA_BODY), options={"cacheSecretAsPem": False}),
    "lighter": Refused("a library of its own signs, on a curve that no token has"),
    "luno": _SENT,
    "mercado": _512,
    "mexc": _256,
    "modetrade": Signs((_ORDERLY,), ("apiKey", "accountId")),
    "mudrex": _SENT,
    "myokx": _256_PASSWORD,
    "nado": Signs((_secp256k1(("[-64:]",)),), ("walletAddress",)),
    "ndax": Signs((_hmac("sha256"),), ("apiKey", "uid", "login", "password")),
    "okx": _256_PASSWORD,
    "okxus": _256_PASSWORD,
    "onetrading": Refused("it signs nothing: the API key alone, sent with each request, is the credential"),
    "p2b": _512,
    "pacifica": Signs((_ED25519_BASE58,), ()),
    "paradex": _STARKNET,
    "paymium": _256,
    "phemex": _256,
    "poloniex": _256,
    "polymarket": Signs(
        (_secp256k1((), ("[-64:]",)),),
        (),
        remark="the wallet's own operations; a trading session's key, which ccxt derives in plaintext, is refused",
    ),
    "revolutx": Signs((_ed25519("pem", shape=_PEM + MARK, field="privateKey"),)),
    "tokocrypto": _256,
    "toobit": _256,
    "upbit": _256,
    "weex": _256_PASSWORD,
    "whitebit": _512,
    "woo": _256,
    "woofipro": Signs((_ORDERLY,), ("apiKey", "accountId")),
    "xt": _256,
    "zaif": _512,
    "zebpay": _256,
}


def require_signable(exchange_id: str) -> Signs:
    """How `exchange_id` signs.  Raises `ConfigError` (`EXCHANGE_UNSIGNABLE`) by name and reason, before anything is sent."""
    entry = EXCHANGES.get(exchange_id)
    if isinstance(entry, Signs):
        return entry
    reason = "nobody examined how it signs" if entry is None else entry.reason
    raise ConfigError("EXCHANGE_UNSIGNABLE", f"{exchange_id[:48]!r} cannot be signed in a token: {reason}")
