"""The request for a session: what is signed, and what is refused before anything is looked at."""

from __future__ import annotations

import msgspec
import pytest

from tallystick.schemas import enrolment, seal
from tallystick.schemas.enrolment import MAX_REQUEST, SessionRequest, decode_request, hex_bytes, proof_bytes
from tallystick.schemas.errors import Malformed

REQUEST = SessionRequest(boot="00" * 16, component="audit", proof="11" * 64, session_key="22" * 32)


def test_a_request_comes_back_as_it_was_sent() -> None:
    assert decode_request(msgspec.json.encode(REQUEST)) == REQUEST


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"{}",
        b"[]",
        msgspec.json.encode(REQUEST)[:-1],
        msgspec.json.encode(REQUEST)[:-1] + b',"x":1}',
        msgspec.json.encode({**msgspec.structs.asdict(REQUEST), "boot": 0}),
        b'{"boot":"\xff"}',
        b"[" * MAX_REQUEST,
    ],
)
def test_anything_else_is_malformed(body: bytes) -> None:
    with pytest.raises(Malformed, match=r"^REQUEST: "):
        decode_request(body)


def test_a_large_body_is_not_parsed() -> None:
    with pytest.raises(Malformed, match="REQUEST_SIZE"):
        decode_request(bytes(MAX_REQUEST + 1))


@pytest.mark.parametrize("text", ["", "0", "00 ", "0 0", "AB", "abcd", "zz", "\u0660\u0660"])
def test_hex_has_one_spelling(text: str) -> None:
    assert hex_bytes("ab", 1, "x") == b"\xab"
    with pytest.raises(Malformed, match="HEX"):
        hex_bytes(text, 1, "x")


def test_every_part_of_a_request_is_in_its_proof() -> None:
    parts: list[tuple[str, str, bytes, bytes, bytes]] = [
        ("d", "c", b"b", b"k", b"f"),
        ("x", "c", b"b", b"k", b"f"),
        ("d", "x", b"b", b"k", b"f"),
        ("d", "c", b"x", b"k", b"f"),
        ("d", "c", b"b", b"x", b"f"),
        ("d", "c", b"b", b"k", b"x"),
        ("dc", "", b"b", b"k", b"f"),
    ]
    assert len({proof_bytes(*p) for p in parts}) == len(parts)


def test_a_proof_is_never_a_statement() -> None:
    assert not enrolment.PREFIX.startswith(seal.PREFIX)
    assert not seal.PREFIX.startswith(enrolment.PREFIX)
