"""What a log shows, and what it never shows."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from tallystick.runtime.deployment.logs import REDACTED, open_log
from tallystick.runtime.keys.keystore import Secret
from tallystick.schemas.errors import ConfigError
from tests.support.world import credential

HIDDEN = "correct horse battery staple"


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_each_line_is_one_json_object_and_the_file_is_the_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "log" / "gateway.jsonl"
    log = open_log(path, "gateway")
    log.info("a thing\nwith a line break", seq=7)
    (line,) = lines(path)
    assert (line["component"], line["event"], line["seq"]) == ("gateway", "a thing\nwith a line break", 7)
    assert path.stat().st_mode & 0o077 == 0


def test_secrets_do_not_reach_the_file_by_type_by_name_or_by_form(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    log = open_log(path, "custody")
    token = credential("gateway")[0].text
    log.info("one", value=Secret(HIDDEN), pin=HIDDEN, Passphrase=HIDDEN, api_key=HIDDEN, text=token)
    logging.getLogger("some.library").warning("kept %s", "in the same file")
    text = path.read_text("utf-8")
    assert HIDDEN not in text
    assert token not in text
    first, second = lines(path)
    assert first["pin"] == first["text"] == REDACTED
    assert second["event"] == "kept in the same file"


def test_a_traceback_is_kept_with_its_message_and_without_local_values(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    log = open_log(path, "custody")
    pin = HIDDEN
    try:
        raise ZeroDivisionError("a defect")
    except ZeroDivisionError:
        log.exception("failed")
    text = path.read_text("utf-8")
    assert "ZeroDivisionError: a defect" in text
    assert pin not in text


def test_a_log_that_cannot_be_written_says_where(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a file where a folder should be")
    with pytest.raises(ConfigError, match="LOG_FILE"):
        open_log(tmp_path / "log" / "x.jsonl", "custody")
