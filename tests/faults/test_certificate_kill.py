"""kill -9 while a certificate is being replaced: what lies there afterwards is one certificate and its own key."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from tallystick.runtime.keys import pki
from tallystick.runtime.keys.identity import Identity
from tallystick.runtime.keys.keystore import Secret

ROOT = Path(__file__).resolve().parents[2]
PASSPHRASE = Secret("kill-test-passphrase")
HOUR = timedelta(hours=1)


class Software:
    """A CA's key that lies in a file: here nobody attacks it."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key

    @property
    def public(self) -> ec.EllipticCurvePublicKey:
        return self._key.public_key()

    def sign(self, data: bytes) -> bytes:
        return self._key.sign(data, ec.ECDSA(hashes.SHA256()))


def renew_for_ever(folder: Path) -> None:
    """The process that is killed."""
    key = load_pem_private_key((folder / "ca.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    certificate = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
    authority = pki.CertificateAuthority("lab", Software(key), certificate)
    shown = Identity("lab", folder / "ca.pem", folder / "gateway.pem", PASSPHRASE)
    sys.stdout.write("renewing\n")
    sys.stdout.flush()
    while True:
        asked = shown.renewal()
        made = authority.certify(
            "gateway", pki.requested_key(asked.request, "lab", "gateway"), time.time_ns(), HOUR, ("localhost",)
        )
        shown.store(asked, made.public_bytes(Encoding.PEM), time.time_ns())
        shown.reload()


async def test_whenever_it_is_killed_the_next_process_shows_a_certificate_and_its_key(tmp_path: Path) -> None:
    """Two files that are replaced one after the other do not fit each other in between."""
    key = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "ca.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    authority = pki.CertificateAuthority.create("lab", Software(key), time.time_ns(), HOUR)
    (tmp_path / "ca.pem").write_bytes(authority.certificate.public_bytes(Encoding.PEM))
    (tmp_path / "gateway.pem").write_bytes(authority.issue("gateway", PASSPHRASE, time.time_ns(), HOUR, ("localhost",)))
    code = f"from {__name__} import renew_for_ever; import pathlib; renew_for_ever(pathlib.Path({str(tmp_path)!r}))"
    seen = set()
    for _ in range(6):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE, cwd=ROOT
        )
        assert process.stdout is not None
        assert await process.stdout.readline() == b"renewing\n"
        await asyncio.sleep(random.uniform(0.01, 0.15))
        process.kill()
        await process.wait()
        shown = Identity("lab", tmp_path / "ca.pem", tmp_path / "gateway.pem", PASSPHRASE)
        shown.require_current(time.time_ns())
        seen.add(shown.fingerprint)
    assert len(seen) > 1
