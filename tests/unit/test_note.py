"""Signed notes: the specification's example, and who counts as a signer."""

from __future__ import annotations

import base64

import pytest

from tallystick.schemas.errors import Malformed, Unverified
from tallystick.schemas.note import key_id, open_note, sign_note
from tests.support.world import key

LOG, WITNESS, THIEF = key("log"), key("witness"), key("thief")


def test_the_example_of_the_go_package_that_defined_the_format() -> None:
    # Provenance: golang.org/x/mod/sumdb/note, package documentation.
    note = (
        "If you think cryptography is the answer to your problem,\n"
        "then you don't know what your problem is.\n"
        "\n"
        "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
    )
    public = base64.b64decode("ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")[1:]
    assert key_id("PeterNeumann", public).hex() == "c74f20a3"
    text, names = open_note(note, {"PeterNeumann": public})
    assert text.endswith("your problem is.\n")
    assert names == {"PeterNeumann"}


def test_all_known_signers_are_named_and_unknown_ones_ignored() -> None:
    note = sign_note("text\n", ("log", LOG), ("witness", WITNESS), ("stranger", THIEF))
    assert open_note(note, {"log": LOG.public, "witness": WITNESS.public}) == ("text\n", frozenset(("log", "witness")))
    assert open_note(note, {"witness": WITNESS.public})[1] == {"witness"}


def test_a_key_of_the_same_name_is_told_by_its_id() -> None:
    note = sign_note("text\n", ("log", THIEF), ("log", LOG))
    assert open_note(note, {"log": LOG.public})[1] == {"log"}
    with pytest.raises(Unverified, match="NOTE_UNSIGNED"):
        open_note(sign_note("text\n", ("log", THIEF)), {"log": LOG.public})


def test_one_wrong_signature_of_a_known_key_spoils_the_note() -> None:
    good, other = sign_note("text\n", ("log", LOG)), sign_note("other\n", ("witness", WITNESS))
    spoiled = good + other.split("\n\n")[1]
    with pytest.raises(Unverified, match="NOTE_SIGNATURE"):
        open_note(spoiled, {"log": LOG.public, "witness": WITNESS.public})


def test_without_known_keys_nothing_is_signed() -> None:
    with pytest.raises(Unverified, match="no known key"):
        open_note(sign_note("text\n", ("log", LOG)), {})


@pytest.mark.parametrize("text", ["", "no newline", "tab\t\n", "carriage\r\n", "null\x00\n", "\ud800\n"])
def test_such_a_text_is_never_signed(text: str) -> None:
    with pytest.raises(Malformed, match="NOTE_TEXT"):
        sign_note(text, ("log", LOG))


def test_a_signature_cut_short_is_wrong_and_not_an_accident() -> None:
    short = base64.b64encode(key_id("log", LOG.public) + bytes(20)).decode()
    with pytest.raises(Unverified, match="NOTE_SIGNATURE"):
        open_note(f"text\n\n— log {short}\n", {"log": LOG.public})


def test_a_note_above_the_limit_is_not_read() -> None:
    with pytest.raises(Malformed, match="NOTE_SIZE"):
        open_note("x" * ((1 << 20) + 1), {})
