"""One rule of what a signature is: RFC 8032's vectors, and what is refused though an equation holds."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from tallystick.schemas.ed25519 import BadSignature, verify
from tests.support import world

ORDER = 2**252 + 27742317777372353535851937790883648493
# RFC 8032 section 7.1, tests 1 and 2.
VECTORS = [
    (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
]
NEUTRAL = bytes((1,)) + bytes(31)


@pytest.mark.parametrize(("public", "data", "signature"), VECTORS)
def test_the_vectors_of_the_standard(public: str, data: str, signature: str) -> None:
    key, text, good = (bytes.fromhex(part) for part in (public, data, signature))
    verify(key, good, text)
    for bad in (good[:-1], good + b"\0", bytes((good[0] ^ 1,)) + good[1:], b""):
        with pytest.raises(BadSignature):
            verify(key, bad, text)
    with pytest.raises(BadSignature):
        verify(key, good, text + b"x")
    with pytest.raises(BadSignature):
        verify(key[:-1], good, text)


def test_a_key_of_small_order_signs_nothing_though_the_equation_holds() -> None:
    """Its one "signature" would fit every message; OpenSSL takes it."""
    signature = NEUTRAL + bytes(32)
    for text in (b"buy", b"sell"):
        Ed25519PublicKey.from_public_bytes(NEUTRAL).verify(signature, text)
        with pytest.raises(BadSignature):
            verify(NEUTRAL, signature, text)


def test_a_scalar_beyond_the_order_makes_no_second_signature() -> None:
    key = world.key("session-gateway")
    good = key.sign(b"order")
    verify(key.public, good, b"order")
    scalar = int.from_bytes(good[32:], "little") + ORDER
    with pytest.raises(BadSignature):
        verify(key.public, good[:32] + scalar.to_bytes(32, "little"), b"order")
