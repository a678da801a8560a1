"""Three verifiers, one verdict: ours, the one from the document, and one in JavaScript.

Hypothesis damages good messages and seals arbitrary events; ours and the independent verifier must say
the same to each, so that neither accepts what the other would not.
"""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tallystick.schemas.errors import TallystickError
from tallystick.schemas.registry import array_header, decode_events, encode_event
from tallystick.schemas.seal import Verifier, decode_statement
from tallystick.schemas.subjects import parse_subject
from tests.interop import independent_verifier as independent
from tests.support.forge import field, forge, samples, sealed, session_key
from tests.support.world import trust_root

HERE = Path(__file__).resolve().parent
VECTORS: dict[str, Any] = json.loads(independent.VECTORS_FILE.read_text(encoding="utf-8"))
GOOD = [(v["subject"], v["stream"], bytes.fromhex(v["payload"])) for v in VECTORS["messages"]["good"]]
VERIFIER = Verifier(trust_root())
ENCODED = [(c, s, array_header(1) + encode_event(e)) for c, s, e in samples()]

values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.sampled_from([-1, 0, 1, 2**63 - 1, 2**63]),
    st.sampled_from(
        ["0", "-0", "1", "01", "1E+3", "1e3", "1.0", "1E-7", "0.0000001", "0.000001", "NaN", "1E+19", "1E+20"]
    ),
    st.sampled_from(["buy", "sell", "limit", "market", "GTC", "permit", "deny", "live"]),
    st.from_regex(r"-?[0-9]{1,21}(\.[0-9]{0,19})?(E[+-][0-9]{1,2})?", fullmatch=True),
    st.text(max_size=5),
    st.binary(max_size=3),
    st.sampled_from([bytes(15), bytes(16), bytes(31), bytes(32), bytes(33)]),
    st.just([]),
    st.lists(st.lists(st.integers(0, 2), max_size=2), max_size=2),
)


def verdict(call: functools.partial[Any]) -> str:
    try:
        call()
    except TallystickError as refused:
        return f"{type(refused).__name__} {refused.code.removesuffix('_CANONICAL')}"
    return "accepted"


def agree(subject: str, stream: str, payload: bytes) -> str:
    ours = verdict(functools.partial(VERIFIER.open, subject, stream, payload))
    refused = independent.judged(functools.partial(independent.verify, independent.trust(), subject, stream, payload))
    assert ours == (" ".join(refused) if refused else "accepted")
    return ours


@given(st.sampled_from(GOOD), st.data())
def test_they_agree_on_damaged_messages(message: tuple[str, str, bytes], data: st.DataObject) -> None:
    subject, stream, payload = message
    start = data.draw(st.integers(0, len(payload)))
    end = data.draw(st.integers(start, min(len(payload), start + 4)))
    changed = payload[:start] + data.draw(st.binary(max_size=4)) + payload[end:]
    # A damaged token may fail at several of its rules; which one is named first is not part of the format.
    token = payload.find(b"eyJ"), payload.find(b"eyJ") + len(field(payload, "credential"))
    if end <= token[0] or start >= token[1]:
        agree(subject, stream, changed)


@settings(max_examples=100)
@given(st.sampled_from(ENCODED), st.data())
def test_they_agree_on_events_with_anything_in_them(sample: tuple[str, str, bytes], data: st.DataObject) -> None:
    component, subject, encoded = sample
    event = msgspec.msgpack.decode(encoded)[0]
    position = data.draw(st.integers(0, len(event) - 1))
    event[position] = data.draw(values)
    changed = msgspec.msgpack.encode([event])
    said = agree(subject, parse_subject(subject).stream, sealed(component, (subject, changed))[0][1])
    if said == "accepted":
        assert decode_events(parse_subject(subject).kind, changed)


@given(st.sampled_from(ENCODED), st.data())
def test_they_agree_on_events_with_bytes_changed(sample: tuple[str, str, bytes], data: st.DataObject) -> None:
    component, subject, encoded = sample
    start = data.draw(st.integers(0, len(encoded)))
    end = data.draw(st.integers(start, min(len(encoded), start + 2)))
    changed = encoded[:start] + data.draw(st.binary(max_size=3)) + encoded[end:]
    agree(subject, parse_subject(subject).stream, sealed(component, (subject, changed))[0][1])


@given(st.integers(0, 10), values)
def test_they_agree_on_statements_with_anything_in_them(position: int, value: object) -> None:
    subject, stream, payload = GOOD[0]
    name = msgspec.structs.fields(decode_statement(field(payload, "statement")))[position].name
    agree(subject, stream, forge(payload, statement={name: value}, signer=session_key("market-data")))


@given(
    st.lists(
        st.sampled_from(["md", "trade", "signal", "cred", "a", "a-", "XRP-ETH", "=2F", "=2E", "é", "*", ""]), max_size=5
    )
)
def test_they_agree_on_subjects(tokens: list[str]) -> None:
    text = ".".join(tokens)
    ours = verdict(functools.partial(parse_subject, text))
    refused = independent.judged(functools.partial(independent.parse_subject, text))
    assert ours == (" ".join(refused) if refused else "accepted")


def test_a_verifier_in_javascript_agrees_on_every_vector() -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed: the JavaScript verifier did not run")
    command = [node, str(HERE / "verify.js"), str(independent.VECTORS_FILE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    accepted, refused = (len(VECTORS["messages"][part]) for part in ("good", "bad"))
    assert done.stdout == f"{accepted} accepted, {refused} refused\n"
