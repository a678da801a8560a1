"""docs/exchanges.md is what the code says of the installed ccxt."""

from __future__ import annotations

from pathlib import Path

import tests
from tallystick.cli.exchanges import rendered, rows
from tallystick.venues import TRADED
from tallystick.venues.signing.schemes import SCHEMES

DOCUMENT = Path(tests.__path__[0]).parent / "docs" / "exchanges.md"


def test_the_document_is_current() -> None:
    assert DOCUMENT.read_text("utf-8") == rendered(DOCUMENT), "run `tallystick exchanges --markdown docs/exchanges.md`"


def test_what_may_trade_can_be_signed_and_nothing_is_said_twice() -> None:
    assert set(TRADED) <= set(SCHEMES)
    names = [name for name, _, _ in rows()]
    assert len(names) == len(set(names)) == 104
