"""The published vectors: what this code makes is what is committed, and the verifier treats each as it says."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from tallystick.schemas import errors
from tallystick.schemas.errors import TallystickError
from tallystick.schemas.merkle import leaf_hash, tree_root
from tallystick.schemas.note import open_note
from tallystick.schemas.registry import MAX_AGE_NS
from tallystick.schemas.seal import ReaderChains, Verifier, require_live
from tallystick.schemas.subjects import KINDS
from tallystick.schemas.trust import open_trust_roots
from tests.support.forge import encoded, samples, sealed
from tests.vectors import make

VECTORS: dict[str, Any] = json.loads(make.PATH.read_text(encoding="utf-8"))
PINNED = bytes.fromhex(VECTORS["pinned"])
ROOT = open_trust_roots([VECTORS["trust_root"]], PINNED)[-1]
NOTE_KEYS = {VECTORS["notes"]["name"]: bytes.fromhex(VECTORS["notes"]["public_key"])}


def named(vectors: list[dict[str, Any]]) -> pytest.MarkDecorator:
    assert len({v["name"] for v in vectors}) == len(vectors), "two vectors of one name"
    return pytest.mark.parametrize("vector", vectors, ids=[v["name"].replace(" ", "-") for v in vectors])


def refused(vector: dict[str, Any]) -> Any:
    return pytest.raises(getattr(errors, vector["error"]), match=f"^{vector['code']}: ")


def test_the_committed_vectors_are_what_the_code_makes() -> None:
    assert make.PATH.read_text(encoding="utf-8") == make.text(), "run `python -m tests.vectors.make`, read the diff"


@named(VECTORS["messages"]["good"])
def test_a_good_message_is_accepted_for_what_it_is(vector: dict[str, Any]) -> None:
    verified = Verifier(ROOT).open(vector["subject"], vector["stream"], bytes.fromhex(vector["payload"]))
    assert (verified.credential.component, verified.statement.component) == (vector["component"],) * 2
    assert (verified.statement.seq, verified.index) == (vector["seq"], vector["index"])
    assert (verified.statement.size, verified.statement.closes) == (vector["size"], vector["closes"])
    assert verified.leaf.hex() == vector["leaf"]
    assert verified.digest.hex() == vector["statement_sha256"]
    assert [e.__struct_config__.tag for e in verified.events] == vector["event_tags"]


@named(VECTORS["messages"]["bad"])
def test_a_bad_message_is_refused_for_its_defect(vector: dict[str, Any]) -> None:
    with refused(vector):
        Verifier(ROOT).open(vector["subject"], vector["stream"], bytes.fromhex(vector["payload"]))


def test_a_bad_message_is_refused_by_a_verifier_that_has_seen_the_good_ones() -> None:
    verifier = Verifier(ROOT)
    for vector in VECTORS["messages"]["good"]:
        verifier.open(vector["subject"], vector["stream"], bytes.fromhex(vector["payload"]))
    for vector in VECTORS["messages"]["bad"]:
        with refused(vector):
            verifier.open(vector["subject"], vector["stream"], bytes.fromhex(vector["payload"]))


@named(VECTORS["chains"])
def test_a_reader_accepts_of_a_sequence_what_the_vector_says(vector: dict[str, Any]) -> None:
    verifier, chains = Verifier(ROOT), ReaderChains()
    codes: list[str | None] = []
    for message in vector["messages"]:
        verified = verifier.open(message["subject"], message["stream"], bytes.fromhex(message["payload"]))
        try:
            chains.accept(verified)
            codes.append(None)
        except TallystickError as exc:
            codes.append(exc.code)
    assert codes == vector["codes"]


@named(VECTORS["live"])
def test_a_message_is_live_only_within_the_limits_of_its_kind(vector: dict[str, Any]) -> None:
    component, subject, event = next(s for s in samples() if s[1].startswith(vector["kind"] + "."))
    verified = Verifier(ROOT).open(
        subject, KINDS[vector["kind"]].stream, sealed(component, encoded(subject, event), time=vector["time"])[0][1]
    )
    if vector["code"] is None:
        require_live(verified, vector["received"])
    else:
        with pytest.raises(errors.Unverified, match=f"^{vector['code']}: "):
            require_live(verified, vector["received"])


def test_no_kind_lives_longer_than_a_minute() -> None:
    assert max(MAX_AGE_NS.values()) <= 60_000_000_000


@named(VECTORS["trust_roots"]["good"])
def test_a_good_sequence_of_trust_roots_is_accepted(vector: dict[str, Any]) -> None:
    assert open_trust_roots(vector["notes"], PINNED)[-1].number == vector["number"]


@named(VECTORS["trust_roots"]["bad"])
def test_a_bad_sequence_of_trust_roots_is_refused(vector: dict[str, Any]) -> None:
    with refused(vector):
        open_trust_roots(vector["notes"], PINNED)


@named(VECTORS["notes"]["good"])
def test_a_good_note_is_opened(vector: dict[str, Any]) -> None:
    text, names = open_note(vector["note"], NOTE_KEYS)
    assert vector["note"].startswith(text + "\n")
    assert names == set(NOTE_KEYS)


@named(VECTORS["notes"]["bad"])
def test_a_bad_note_is_refused(vector: dict[str, Any]) -> None:
    with refused(vector):
        open_note(vector["note"], NOTE_KEYS)


def test_roots_over_one_byte_leaves() -> None:
    for vector in VECTORS["merkle"]:
        assert tree_root([leaf_hash(bytes([i])) for i in range(vector["size"])]).hex() == vector["root"]


def test_every_event_type_has_a_vector() -> None:
    shown = {tag for v in VECTORS["messages"]["good"] for tag in v["event_tags"]}
    assert shown == {msgspec.inspect.type_info(type(e)).tag for _, _, e in samples()}  # type: ignore[attr-defined]
