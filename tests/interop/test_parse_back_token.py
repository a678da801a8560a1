"""Orders for every venue that is read back, signed by a key that lies in SoftHSM: the same bytes as with the key in software."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from tallystick.runtime.keys import hsm
from tallystick.runtime.keys.keystore import Secret
from tallystick.venues import Denied
from tallystick.venues.signing.schemes import require_signable
from tallystick.venues.signing.token_keys import TokenKeys, take_in
from tests.support.parse_back import P256, PLACES, desk, secret_of

PIN = Secret("parse-back-test-pin-7d20")
KINDS = {"bybit-rsa": "rsa", "binance-usdm": "ed25519", "coinbase": "p256"}


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[hsm.Token]:
    directory = tmp_path_factory.mktemp("hsm") / "venue"
    hsm.create_token(directory, "venue", Secret("parse-back-test-so-pin"), PIN)
    with hsm.Token.open(directory, "venue", PIN, writable=True) as opened:
        yield opened


@pytest.mark.parametrize("name", PLACES)
def test_an_order_is_signed_in_the_token_as_in_software_and_a_forged_one_reaches_no_token(
    token: hsm.Token, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = desk(name)
    scheme = require_signable(place.place.exchange, KINDS.get(name, "hmac"))
    take_in(token, name.encode(), name, Secret(secret_of(name)), scheme)
    builder = place.build((place.record,), TokenKeys(token, name.encode(), scheme))
    place.exchange.options["lastNonce"] = 0
    ours, software = builder.order(place.record, place.order()), place.builder.order(place.record, place.order())
    if name == "coinbase":
        head, claims, made = dict(ours.headers)["Authorization"].removeprefix("Bearer ").split(".")
        signature = base64.urlsafe_b64decode(f"{made}==")
        der = utils.encode_dss_signature(int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))
        P256.public_key().verify(der, f"{head}.{claims}".encode(), ec.ECDSA(hashes.SHA256()))
        assert ours.body == software.body
        return
    assert ours == software
    uses = token.uses.total()
    exchange = builder._capture.exchange
    honest = exchange.create_order
    monkeypatch.setattr(exchange, "create_order", lambda *args: honest(*args[:3], "0.9", *args[4:]))
    with pytest.raises(Denied, match="FIELD_MISMATCH"):
        builder.order(place.record, place.order())
    assert token.uses.total() == uses
