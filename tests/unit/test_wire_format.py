"""`docs/wire-format.md` says what the code does: its tables, its example, its limits and its codes."""

from __future__ import annotations

import json
import re

from tallystick.schemas import bounds, event, nats_jwt, note, registry, seal, security, subjects
from tests.support.forge import samples
from tests.vectors import make, tables

DOC = tables.PATH.read_text(encoding="utf-8")


def test_the_tables_and_the_example_are_what_the_code_gives() -> None:
    assert tables.render(DOC) == DOC, "run `python -m tests.vectors.tables`, read the diff"


def test_the_example_is_the_first_good_vector() -> None:
    vector = json.loads(make.PATH.read_text(encoding="utf-8"))["messages"]["good"][0]
    payload = re.search(r"payload \(\d+ bytes\):\n([0-9a-f\n]+)", DOC)
    assert payload is not None
    assert payload[1].replace("\n", "") == vector["payload"]
    assert vector["leaf"] in DOC
    assert vector["statement_sha256"] in DOC


def test_every_type_has_a_row_and_a_sample() -> None:
    tags = {t.__struct_config__.tag for types in registry.EVENTS.values() for t in types}
    assert {type(e).__struct_config__.tag for _, _, e in samples()} == tags
    assert all(f"| `{tag}` |" in DOC for tag in tags)


def test_the_limits_are_those_of_the_code() -> None:
    words = " ".join(DOC.split())
    assert f"at most {nats_jwt.MAX_CREDENTIAL} ASCII characters" in words
    assert f"flushes of 1 to {seal.MAX_FLUSH} messages" in words
    assert f"at most {seal.MAX_STATEMENT} bytes." in words
    assert f"a payload may be {seal.SEAL_BYTES:,} bytes longer" in words
    assert f"at most {event.MAX_CAUSES} bin(16)" in words
    assert f"at most {security.MAX_DEAD_PAYLOAD:,} bytes of payload" in words
    assert f"at most {note.MAX_SIGNATURES};" in words
    assert note.MAX_NOTE == 1 << 20
    assert f"at most {subjects.MAX_TOKEN} characters" in words
    assert f"at most {subjects.MAX_SUBJECT} characters" in words
    assert f"at most {bounds.MAX_LIST_AGE_NS // 10**9} s old" in words
    assert bounds.MAX_SKEW_NS == 10**9
    assert "`info`, `warning`, `high` or `critical`" in words
    assert subjects.SEVERITIES == (
        "info",
        "warning",
        "high",
        "critical",
    )
    assert f"±{event.MAX_ZERO_EXPONENT}" in words


def test_every_code_that_a_vector_expects_is_explained() -> None:
    vectors = json.loads(make.PATH.read_text(encoding="utf-8"))
    bad = [*vectors["messages"]["bad"], *vectors["trust_roots"]["bad"], *vectors["notes"]["bad"]]
    codes = {v["code"].removesuffix("_CANONICAL") for v in bad}
    codes |= {c for v in vectors["chains"] for c in v["codes"] if c} | {v["code"] for v in vectors["live"] if v["code"]}
    missing = {c for c in codes if f"`{c}`" not in DOC and not c.startswith(("SUBJECT", "SYMBOL", "KEY"))}
    assert not missing
