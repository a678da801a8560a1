"""docs/exchanges.md is what the code says of the installed ccxt."""

from __future__ import annotations

from pathlib import Path
from typing import get_args, get_type_hints

import pytest

import tallystick.venues
import tests
from tallystick.cli.exchanges import rendered, rows
from tallystick.schemas.errors import ConfigError
from tallystick.schemas.trust import Venue
from tallystick.venues import KINDS, TRADED, adapter, parse_back
from tallystick.venues.signing.schemes import SCHEMES

DOCUMENT = Path(tests.__path__[0]).parent / "docs" / "exchanges.md"


def test_the_document_is_current() -> None:
    assert DOCUMENT.read_text("utf-8") == rendered(DOCUMENT), "run `tallystick exchanges --markdown docs/exchanges.md`"


def test_what_may_trade_can_be_signed_and_nothing_is_said_twice() -> None:
    assert set(TRADED) <= set(SCHEMES)
    names = [name for name, _, _ in rows()]
    assert len(names) == len(set(names)) == 104


def test_every_package_of_a_venue_is_a_kind_and_every_kind_is_what_it_is_said_to_be() -> None:
    folder = Path(tallystick.venues.__path__[0])
    assert {kind.package for kind in KINDS.values()} == {each.parent.name for each in folder.glob("*/request.py")}
    for name, kind in KINDS.items():
        if not kind.missing:
            assert adapter(name).PING
            continue
        package = parse_back(name)
        assert package.__name__ == f"tallystick.venues.{kind.package}"  # type: ignore[attr-defined]
        assert {"venue_order", "amounts", "require_own", "request_builder"} <= set(vars(package))
        assert kind.exchange == package.request_builder.EXCHANGE  # type: ignore[attr-defined]
        assert not hasattr(package, "order_answer"), "whole by now: say so"
        with pytest.raises(ConfigError, match=f"VENUE_KIND: .*{kind.missing}"):
            adapter(name)


def test_what_may_trade_is_what_has_an_adapter_and_what_a_trust_root_may_name() -> None:
    whole = {name for name, kind in KINDS.items() if not kind.missing}
    assert whole == set(get_args(get_type_hints(Venue)["kind"]))
    for kind in KINDS.values():
        assert TRADED[kind.exchange].startswith("no; parse-back: " if kind.missing else "yes; parse-back: ")
        # Nothing has been tried against an exchange itself.
        assert kind.tried == ("" if kind.missing else "paper exchange")
    with pytest.raises(ConfigError, match="VENUE_KIND"):
        parse_back("mtgox")
