"""How each exchange of ccxt wants its requests signed, and which cannot be signed with a key that stays in a token.

Declared, not guessed: an exchange that does not stand here is refused, and a test holds every line against what ccxt does, so
that a new release of it which adds an exchange, or signs otherwise, fails.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal

import msgspec

from tallystick.schemas.errors import ConfigError

Kind = Literal["hmac", "ed25519", "rsa", "p256", "secp256k1"]
# How the secret is written where the exchange gives it out.
Form = Literal["text", "text-44", "pem", "ec-pem", "rsa-pem", "base64", "base58", "orderly", "hex"]
# What is done to a secret before it is an HMAC key, and the digest.
Mac = tuple[tuple[str, ...], Literal["sha256", "sha384", "sha512"]]


# How ccxt hands on a private key of each form.
_CHAINS: Final[dict[str, tuple[tuple[str, ...], ...]]] = {
    "pem": (),
    "rsa-pem": (),
    "ec-pem": (("utf8",),),
    "base64": (("base64", "[0:32]"),),
    "base58": (("base58", "[0:32]"),),
    "orderly": (("-ed25519:", "base58"),),
    # More than one function cuts it, each the same part.
    "hex": (("[-64:]", "[-64:]", "[-64:]"), ("utf8", "keccak")),
}


class Scheme(msgspec.Struct, frozen=True, kw_only=True):
    """One way in which an exchange takes signatures.

    - `field`: ccxt's name of the secret; `form`: how it is written.
    - `macs`: what HMAC keys are made of the secret, one key in the token for each.
    """

    kind: Kind
    field: Literal["secret", "privateKey"] = "secret"
    form: Form = "text"
    macs: tuple[Mac, ...] = ()

    @property
    def chains(self) -> tuple[tuple[str, ...], ...]:
        """What ccxt does to the secret before it signs, step by step."""
        return tuple(transforms for transforms, _ in self.macs) if self.kind == "hmac" else _CHAINS[self.form]


def _hmac(*macs: Mac, form: Form = "text", field: Literal["secret", "privateKey"] = "secret") -> Scheme:
    return Scheme(kind="hmac", field=field, form=form, macs=macs)


_UTF8: Final = ("utf8",)
_SHA256: Final = _hmac((_UTF8, "sha256"))
_SHA384: Final = _hmac((_UTF8, "sha384"))
_SHA512: Final = _hmac((_UTF8, "sha512"))
_DECODED_SHA256: Final = _hmac((("base64",), "sha256"))
_DECODED_SHA512: Final = _hmac((("base64",), "sha512"))
_WALLET: Final = Scheme(kind="secp256k1", field="privateKey", form="hex")

# HMAC with the secret's text and SHA-256 …
_TEXT_SHA256: Final = """
    bequant bigone binanceus bingx bitbank bitflyer bitget bitrue bitso bitstamp
    bittrade bitvavo blofin bullish bybiteu bybitid bydfi cex coincheck coinmate coinsph cryptocom deepcoin
    delta deribit digifinex fmfwio foxbit hashkey hitbtc hollaex htx independentreserve kucoin kucoinfutures
    lbank mexc myokx ndax okx okxus paymium phemex poloniex tokocrypto toobit upbit weex woo xt zebpay
"""
# … SHA-384 …
_TEXT_SHA384: Final = """
    bitfinex bitopro btse gemini
"""
# … SHA-512.
_TEXT_SHA512: Final = """
    bit2c bitbns coinspot gate gateeu indodax latoken mercado p2b whitebit zaif
"""

SCHEMES: Final[dict[str, tuple[Scheme, ...]]] = {
    **dict.fromkeys(_TEXT_SHA256.split(), (_SHA256,)),
    **dict.fromkeys(_TEXT_SHA384.split(), (_SHA384,)),
    **dict.fromkeys(_TEXT_SHA512.split(), (_SHA512,)),
    # the secret is base64 of the key
    **dict.fromkeys(("btcturk", "coinbaseexchange"), (_DECODED_SHA256,)),
    **dict.fromkeys(("btcmarkets", "kraken", "krakenfutures"), (_DECODED_SHA512,)),
    # something else is done to it first
    "apex": (_hmac((("tobase64", "utf8"), "sha256")),),
    "btcbox": (_hmac((("utf8", "md5", "utf8"), "sha256")),),
    "coinone": (_hmac((("upper", "utf8"), "sha512")),),
    # its newer and its older API
    "bithumb": (_hmac((_UTF8, "sha256"), (_UTF8, "sha512")),),
    # public keys are taken as well: the private one is born in the token
    **dict.fromkeys(
        ("binance", "binancecoinm", "binanceusdm"),
        (Scheme(kind="ed25519", form="pem"), Scheme(kind="rsa", form="rsa-pem"), _SHA256),
    ),
    "bybit": (Scheme(kind="rsa", form="rsa-pem"), _SHA256),
    "coinbase": (Scheme(kind="p256", form="ec-pem"), Scheme(kind="ed25519", form="base64"), _SHA256),
    # its older keys are sent in the login of its websockets
    "coinbaseinternational": (Scheme(kind="p256", form="ec-pem"), Scheme(kind="ed25519", form="base64")),
    # Ed25519 alone
    "backpack": (Scheme(kind="ed25519", form="base64"),),
    "modetrade": (Scheme(kind="ed25519", form="orderly"),),
    "pacifica": (Scheme(kind="ed25519", field="privateKey", form="base58"),),
    "revolutx": (Scheme(kind="ed25519", field="privateKey", form="pem"),),
    "woofipro": (Scheme(kind="ed25519", form="orderly"),),
    # a wallet's key
    **dict.fromkeys(("aster", "derive", "grvt", "hyperliquid", "nado", "polymarket"), (_WALLET,)),
    "hibachi": (_WALLET, _hmac((_UTF8, "sha256"), form="text-44", field="privateKey")),
}

_SENT: Final = "the secret itself is a part of each request"
_STARK: Final = "signs on the STARK curve, which no token has"
REFUSED: Final[dict[str, str]] = {
    **dict.fromkeys(("alpaca", "bitteam", "blockchaincom", "luno", "mudrex"), _SENT),
    "cryptomus": "signs with MD5 of the request and the secret joined, which no token does",
    "dydx": "derives its keys from the wallet's signature, and signs with them outside of any token",
    "extended": _STARK,
    "lighter": "signs in a library of its own, which wants the key",
    "onetrading": "its API key is a bearer's token: there is nothing to sign, and the key is sent",
    "paradex": _STARK,
}


def require_signable(exchange_id: str, kind: str = "") -> Scheme:
    """The scheme of that kind, or the first.  Raises `ConfigError` for what cannot be signed, by name and reason."""
    schemes = SCHEMES.get(exchange_id)
    if schemes is None:
        why = REFUSED.get(exchange_id, "it was not examined; ccxt may have it, no test has seen what it signs")
        raise ConfigError("EXCHANGE_UNSIGNABLE", f"{exchange_id[:48]!r} cannot be signed with a key in a token: {why}")
    for scheme in schemes:
        if kind in ("", scheme.kind):
            return scheme
    known = ", ".join(scheme.kind for scheme in schemes)
    raise ConfigError("EXCHANGE_UNSIGNABLE", f"{exchange_id} takes no {kind[:16]} signatures, but {known}")


def all_schemes() -> Iterator[tuple[str, Scheme]]:
    """Every exchange with each of its schemes, by name."""
    for exchange_id in sorted(SCHEMES):
        for scheme in SCHEMES[exchange_id]:
            yield exchange_id, scheme
