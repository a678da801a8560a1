from __future__ import annotations

import re
from pathlib import Path

from tallystick.components import Context, StrategyContext
from tallystick.components.strategy.host import Host
from tallystick.runtime.deployment.service import ServiceContext

DOCS = Path(__file__).parent.parent.parent / "docs"


def public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def test_user_code_gets_no_secret_no_link_and_no_verifier() -> None:
    kept_back = {"secret", "deployment", "link", "verifier", "sessions", "admit", "at_stop", "subscribe_raw", "entropy"}
    assert kept_back & (public(ServiceContext) | {"link", "verifier", "entropy"}) == kept_back
    assert not public(Context) & kept_back
    assert not (public(StrategyContext) | public(Host)) & kept_back


def test_what_a_component_is_offered_is_what_its_page_says() -> None:
    page = (DOCS / "write-a-component.md").read_text()
    table = page.partition("## What `ctx` offers")[2].partition("\n## ")[0]
    named = {
        name for row in re.findall(r"^\| (.+?) \|", table, re.MULTILINE) for name in re.findall(r"ctx\.(\w+)", row)
    }
    assert named == public(Context)
