"""The archive's writer, killed: nothing is lost or doubled."""

from __future__ import annotations

import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.support.archive import Story, Vault

ROOT = Path(__file__).resolve().parents[2]
WRITER = """
import pickle, sys
from pathlib import Path
from tallystick.record.archive import Archive
from tallystick.components.audit.projector import Projector
from tallystick.record.place import Place, load_verifiers
place = Place(Path(sys.argv[1]), Path(sys.argv[2]))
projector = Projector(Archive(place.archive), load_verifiers(place))
print("ready", flush=True)
for i, message in enumerate(pickle.loads(Path(sys.argv[3]).read_bytes())):
    if message.stream_seq > projector.positions[message.stream]:
        projector.take(message, projector.open(message))
        if i % 3 == 0:
            projector.flush()
            projector.archive.compact("MARKET", 0)
            projector.archive.sweep(1 << 62)
projector.flush()
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
