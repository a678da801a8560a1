"""docs/cli.md is what `--help` says, and every command shows an example."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup, TyperOption

import tests
from tallystick.cli import main

DOCUMENT = Path(tests.__path__[0]).parent / "docs" / "cli.md"


def commands(group: TyperGroup, prefix: str) -> list[tuple[str, Any]]:
    """Every command below `group` with its full name, in the order of the help."""
    found: list[tuple[str, Any]] = []
    for name, command in group.commands.items():
        full = f"{prefix} {name}"
        found += commands(command, full) if isinstance(command, TyperGroup) else [(full, command)]
    return found


def all_commands() -> list[tuple[str, Any]]:
    root = typer.main.get_command(main.commands())
    assert isinstance(root, TyperGroup)
    return commands(root, "tallystick")


def test_every_command_says_what_it_does_and_shows_an_example() -> None:
    for name, command in all_commands():
        assert command.help, name
        assert "Example" in (command.epilog or ""), name
        assert name.removeprefix("tallystick ") in (command.epilog or ""), name
        for parameter in command.params:
            if isinstance(parameter, TyperOption) and parameter.name != "help":
                assert parameter.help or name.startswith("tallystick init"), (name, parameter.name)


def test_the_document_names_every_command_and_every_option_and_no_other() -> None:
    text = DOCUMENT.read_text()
    sections = {part.split("\n", 1)[0].strip(): part for part in text.split("\n## ")[1:]}
    known = dict(all_commands())
    assert {name for name in sections if name.startswith("tallystick ")} == set(known)
    for name, command in known.items():
        options = [p for p in command.params if isinstance(p, TyperOption)]
        wanted = {option for p in options for option in p.opts if option != "--help"}
        rows = (line.split("`")[1] for line in sections[name].splitlines() if line.startswith("| `--"))
        assert {row.split()[0] for row in rows} == wanted, name


def test_the_exit_codes_are_documented() -> None:
    text = DOCUMENT.read_text()
    for line in ("| 0 |", "| 1 |", "| 2 |", "| 130 |"):
        assert line in text
