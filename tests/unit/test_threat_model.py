"""Every test that the threat model names exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def test_every_claim_of_the_threat_model_names_tests_that_exist() -> None:
    text = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", text))
    found = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert len(named) > 40
    assert named - found == set()


def test_every_claim_has_a_test() -> None:
    claims = (
        (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8").split("## Claims")[1].split("## What is not")[0]
    )
    rows = [row for row in claims.splitlines() if row.startswith("| ") and not row.startswith("| claim |")]
    assert rows
    assert [row for row in rows if "`test_" not in row] == []
