"""The archive's writer, killed: nothing is lost or doubled."""

from __future__ import annotations

import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tallystick.components.audit.projector import Projector
from tallystick.record import archive as archive_module
from tallystick.record.archive import Archive
from tallystick.record.place import Place, load_verifiers
from tallystick.record.verify import verify
from tests.support.archive import Story, Vault, project

ROOT = Path(__file__).resolve().parents[2]
WRITER = """
import pickle, sys
from pathlib import Path
from tallystick.record.archive import Archive
from tallystick.components.audit.projector import Projector
from tallystick.record.place import Place, load_verifiers
from tests.support.archive import project
place = Place(Path(sys.argv[1]), Path(sys.argv[2]))
projector = Projector(Archive(place.archive), load_verifiers(place))
print("ready", flush=True)
project(projector, pickle.loads(Path(sys.argv[3]).read_bytes()), flush=3, compact=["MARKET"])
print("done", flush=True)
"""


def test_killed_at_random_moments_nothing_is_lost_or_doubled(tmp_path: Path) -> None:
    vault, story = Vault(tmp_path / "deployment"), Story()
    story.streams.ticks(story.market, 150)
    file = tmp_path / "messages"
    file.write_bytes(pickle.dumps(story.streams.stored))
    rng = random.Random(7)
    command = [sys.executable, "-c", WRITER, str(vault.path), str(vault.place.root), str(file)]
    done = kills = 0
    while not done:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        if kills < 3:
            time.sleep(rng.uniform(0.02, 0.25))
            process.send_signal(signal.SIGKILL)
            kills += 1
        done = process.stdout.readline() == b"done\n"
        process.stdout.close()
        process.wait()
        assert vault.verify().problems == []
    report = vault.verify()
    assert report.messages == len(story.streams.stored)
    assert report.status["ok"] == report.messages


def test_at_whatever_step_it_stops_the_archive_verifies_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first flush, later ones and compactions, each left as it was before every step that touches the disk."""
    vault, story = Vault(tmp_path / "deployment"), Story()
    story.streams.ticks(story.market, 20)
    left: list[Place] = []

    def keep_before(patch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        step = getattr(owner, name)

        def kept(*args: Any, **kwargs: Any) -> Any:
            left.append(Place(tmp_path / f"{len(left):03d}-{name}", vault.place.root))
            shutil.copytree(vault.path, left[-1].archive)
            return step(*args, **kwargs)

        patch.setattr(owner, name, kept)

    def archive_all(place: Place) -> None:
        projector = Projector(Archive(place.archive), load_verifiers(place))
        try:
            project(projector, story.streams.stored, flush=3, compact=["MARKET"])
        finally:
            projector.archive.close()

    with monkeypatch.context() as patch:
        for name in ("write_table", "close"):
            keep_before(patch, pq.ParquetWriter, name)
        keep_before(patch, os, "rename")
        for name in ("sync", "append_durably"):
            keep_before(patch, archive_module, name)
        archive_all(vault.place)
    assert len(left) > 100
    assert any(segment.level for segment in vault.segments("MARKET"))
    first = 2 + next(i for i, place in enumerate(left) if place.archive.name.endswith("append_durably"))
    chosen = left[:first] + left[first::9]  # the whole first flush, and every step of later ones somewhere
    for place in chosen:
        assert verify(place).problems == [], place.archive.name
    for place in chosen[::4]:
        archive_all(place)
        report = verify(place)
        assert (report.problems, report.messages) == ([], len(story.streams.stored)), place.archive.name
