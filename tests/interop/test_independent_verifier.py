"""The verifier that was written from `docs/wire-format.md` alone agrees with ours on every vector."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

from tests.interop import independent_verifier
from tests.interop.independent_verifier import KINDS, VECTORS, Chains, judged, open_note, open_roots, trust, verify


def expected(vector: dict[str, Any]) -> tuple[str, str]:
    return vector["error"], vector["code"].removesuffix("_CANONICAL")


def opened(vector: dict[str, Any]) -> dict[str, Any]:
    return verify(trust(), vector["subject"], vector["stream"], bytes.fromhex(vector["payload"]))


def test_it_accepts_every_good_message_and_reads_the_same_in_it() -> None:
    for vector in VECTORS["messages"]["good"]:
        result = opened(vector)
        for name in ("component", "seq", "index", "size", "closes", "leaf", "statement_sha256", "event_tags"):
            assert result[name] == vector[name], (vector["name"], name)


def test_it_refuses_every_bad_message_for_the_same_reason() -> None:
    results = {v["name"]: judged(functools.partial(opened, v)) for v in VECTORS["messages"]["bad"]}
    assert results == {v["name"]: expected(v) for v in VECTORS["messages"]["bad"]}


def test_it_accepts_the_same_of_every_sequence() -> None:
    for vector in VECTORS["chains"]:
        chains, codes = Chains(), []
        for message in vector["messages"]:
            refused = judged(functools.partial(chains.accept, opened(message)))
            codes.append(refused and refused[1])
        assert codes == vector["codes"], vector["name"]


def test_it_calls_the_same_messages_live() -> None:
    for vector in VECTORS["live"]:
        age = vector["received"] - vector["time"]
        code = "FUTURE" if age < -(10**9) else "STALE" if age > KINDS[vector["kind"]][2] else None
        assert code == vector["code"], vector["name"]


def test_it_follows_the_same_trust_roots() -> None:
    pinned = bytes.fromhex(VECTORS["pinned"])
    for vector in VECTORS["trust_roots"]["good"]:
        assert open_roots(vector["notes"], pinned)["number"] == vector["number"], vector["name"]
    bad = VECTORS["trust_roots"]["bad"]
    results = {v["name"]: judged(functools.partial(open_roots, v["notes"], pinned)) for v in bad}
    assert results == {v["name"]: expected(v) for v in bad}


def test_it_opens_the_same_notes() -> None:
    keys = {VECTORS["notes"]["name"]: bytes.fromhex(VECTORS["notes"]["public_key"])}
    for vector in VECTORS["notes"]["good"]:
        open_note(vector["note"], keys)
    bad = VECTORS["notes"]["bad"]
    results = {v["name"]: judged(functools.partial(open_note, v["note"], keys)) for v in bad}
    assert results == {v["name"]: expected(v) for v in bad}


def test_it_shares_no_code_with_the_system() -> None:
    source = Path(independent_verifier.__file__).read_text(encoding="utf-8")
    assert not re.search(r"^\s*(from|import) (tallystick|msgspec|tests)", source, re.MULTILINE)
