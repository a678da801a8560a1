"""Trust roots in the archive: kept with it, all versions, each judging the messages of its time."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tallystick.components.audit.main import keep_trust_roots
from tallystick.record.chains import HANDOVER_NS, open_message
from tallystick.record.files import ArchiveError
from tallystick.record.place import Place, load_verifiers, locate
from tallystick.schemas.errors import ConfigError, TallystickError, Unverified
from tallystick.schemas.nats_jwt import encode_key
from tallystick.schemas.seal import Verified, Verifier
from tallystick.schemas.trust import ROOT_KEY_NAME, TrustRoot, sign_document
from tests.support.archive import Story, Vault
from tests.support.world import NOW, key, trust_root


def rotated() -> TrustRoot:
    """Version 2: market data has a new role key."""
    old = trust_root(number=2)
    market = msgspec.structs.replace(
        old.components["market-data"], role_key=encode_key("A", key("new role market-data").public)
    )
    return msgspec.structs.replace(old, issued=NOW, components=old.components | {"market-data": market})


def note(root: TrustRoot) -> str:
    return sign_document(root, (ROOT_KEY_NAME, key("operator-root")))


def test_a_replaced_role_key_counts_for_what_was_stored_before_and_no_longer() -> None:
    story = Story()
    tick = next(m for m in story.streams.stored if m.stream == "MARKET")
    verifiers = [Verifier(trust_root()), Verifier(rotated())]

    def at(stored: int) -> Verified | TallystickError:
        return open_message(verifiers, tick.subject, tick.stream, tick.payload, stored)

    assert isinstance(at(NOW), Verified)
    assert isinstance(at(NOW + HANDOVER_NS - 1), Verified)
    refused = at(NOW + HANDOVER_NS)
    assert isinstance(refused, Unverified)
    assert refused.code == "ROLE_KEY"


def test_the_archive_keeps_every_trust_root_and_refuses_another_under_the_same_number(tmp_path: Path) -> None:
    source, target = tmp_path / "trust", tmp_path / "archive" / "trust"
    source.mkdir()
    pinned = source / "operator-root.pub"
    pinned.write_text(key("operator-root").public.hex() + "\n")
    (source / "root-1.note").write_text(note(trust_root()))
    (source / "root-2.note").write_text(note(rotated()))
    assert [v.trust.number for v in keep_trust_roots(source, pinned, target)] == [1, 2]
    assert [v.trust.number for v in load_verifiers(Place(target.parent, pinned))] == [1, 2]
    assert [v.trust.number for v in keep_trust_roots(source, pinned, target)] == [1, 2]
    (source / "root-2.note").write_text(note(msgspec.structs.replace(rotated(), issued=NOW + 1)))
    with pytest.raises(ArchiveError, match="ARCHIVE_TRUST"):
        keep_trust_roots(source, pinned, target)
    pinned.write_text(key("somebody else").public.hex())
    with pytest.raises(Unverified):
        keep_trust_roots(source, pinned, target)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ARCHIVE_MISSING"):
        locate(tmp_path)
    vault = Vault(tmp_path / "deployment")
    assert locate(vault.deployment) == vault.place
    with pytest.raises(ConfigError, match="ROOT_MISSING"):
        locate(vault.deployment, tmp_path / "nothing.pub")
    (vault.path / "trust" / "root-1.note").unlink()
    with pytest.raises(ConfigError, match="TRUST_ROOT_MISSING"):
        load_verifiers(vault.place)
    vault.place.root.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="TRUST_ROOT"):
        load_verifiers(vault.place)
