"""docs/deployment-toml.md names every key of the file with its default, and no other."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

import tests
from tallystick.runtime.deployment import config
from tallystick.schemas.limits import Limits
from tallystick.schemas.trust import Cap, Instrument

DOCUMENT = (Path(tests.__path__[0]).parent / "docs" / "deployment-toml.md").read_text()
# Their own sections hold what is in these.
TABLES = {
    "broker",
    "authority",
    "vault",
    "rotation",
    "venue",
    "instruments",
    "limits",
    "caps",
    "market_data",
    "identity",
    "strategies",
    "observers",
    "tokens",
}
SECTIONS: dict[str, type[msgspec.Struct]] = {
    "The file itself": config.Config,
    "`[broker]`, `[authority]`": config.Endpoint,
    "`[tokens.LABEL]`": config.TokenConfig,
    "`[vault]`": config.VaultConfig,
    "`[rotation]`": config.RotationConfig,
    "`[venue]`": config.VenueConfig,
    "`[[instruments]]`": Instrument,
    "`[[caps]]`": Cap,
    "`[limits]`": Limits,
    "`[market_data]`": config.MarketDataConfig,
    "`[identity.strategies]`": config.StrategyTokens,
    "`[identity.execution]`": config.ExecutionKey,
    "`[[strategies]]`": config.StrategyConfig,
    "`[[observers]]`": config.ObserverConfig,
}


def written(value: Any) -> str:
    """A default as it would stand in the file."""
    if value is msgspec.NODEFAULT:
        return ""
    if isinstance(value, str | Decimal):
        return f'`"{value}"`'
    return f"`{list(value) if isinstance(value, tuple) else value}`"


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_stands_in_the_reference_with_its_default(section: str) -> None:
    _, found, rest = DOCUMENT.partition(f"## {section}\n")
    assert found
    text = rest.partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| `")]
    documented = {cells[0].strip("`"): cells[2] for cells in rows}
    fields = msgspec.structs.fields(SECTIONS[section])
    defaults = {
        f.encode_name: written(f.default_factory() if callable(f.default_factory) else f.default)
        for f in fields
        if section != "The file itself" or f.encode_name not in TABLES
    }
    assert documented == defaults
    assert all(cells[1] and cells[3] and cells[4] for cells in rows)


def test_every_table_has_its_section() -> None:
    tables = {f.encode_name for f in msgspec.structs.fields(config.Config)} & TABLES
    assert tables == TABLES
    named = {name for title in SECTIONS for name in re.findall(r"`\[+(\w+)[.\w]*\]+`", title)}
    assert named == TABLES
