"""`tallystick status` says when the first certificate of what runs ends, and whose was not renewed in time."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from tallystick.cli.status import _certificates
from tallystick.runtime.keys import pki
from tallystick.runtime.keys.keystore import Secret

HOUR = 3600 * 10**9
NOW = 1_800_000_000 * 10**9


class Software:
    """A CA's key in memory."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())

    @property
    def public(self) -> ec.EllipticCurvePublicKey:
        return self._key.public_key()

    def sign(self, data: bytes) -> bytes:
        return self._key.sign(data, ec.ECDSA(hashes.SHA256()))


@pytest.fixture
def deployment(tmp_path: Path) -> Any:
    authority = pki.CertificateAuthority.create("lab", Software(), NOW, dt.timedelta(days=1))
    for name, start in (("gateway", NOW), ("custody", NOW - HOUR), ("nats", NOW)):
        made = authority.issue(name, Secret("passphrase"), start, dt.timedelta(hours=8))
        (tmp_path / f"{name}.pem").write_bytes(made)
    bus = SimpleNamespace(components={"gateway": None, "custody": None})
    config = SimpleNamespace(vault=SimpleNamespace(address="https://a.vault.elsewhere:8200"))
    return cast("Any", SimpleNamespace(identity=lambda name: tmp_path / f"{name}.pem", bus=lambda: bus, config=config))


def test_the_first_end_is_shown_with_whose_it_is(deployment: Any) -> None:
    assert _certificates(deployment, ["gateway", "custody"], NOW) == "the first ends 2027-01-15 15:00:00 UTC (custody)"


def test_who_did_not_renew_is_named_while_there_is_time(deployment: Any) -> None:
    running = ["gateway", "custody", "gone"]
    assert "NOT" not in _certificates(deployment, running, NOW + 4 * HOUR)
    said = _certificates(deployment, running, NOW + 5 * HOUR + HOUR // 2)
    assert said == "NOT RENEWED: custody; the first ends 2027-01-15 15:00:00 UTC (custody)"
