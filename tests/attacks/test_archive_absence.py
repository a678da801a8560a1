"""What is taken out of an archive with every number closed up: sealed statements of others still speak of it.

The attacker makes the whole archive anew from the messages that suit him; only the keys are missing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tallystick.components.audit.projector import Stored
from tallystick.record.manifest import MANIFEST
from tests.support.archive import Vault
from tests.support.desk import SECOND, Desk, rebuilt, run

HOUR = 3_600 * SECOND


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    return Desk(tmp_path_factory.mktemp("desk") / "deployment")


@pytest.fixture
def vault(desk: Desk, tmp_path: Path) -> Vault:
    return desk.vault.copy(tmp_path / "deployment")


def _of(vault: Vault, desk: Desk, leave: Callable[[Stored], bool]) -> None:
    rebuilt(vault, [m for m in desk.streams.stored if not leave(m)])


def _by(desk: Desk, component: str) -> Callable[[Stored], bool]:
    """The messages that a component sealed: it alone publishes on its subjects."""
    own = {"audit": ("audit.", "guard.audit"), "custody": ("guard.custody",), "gateway": ("guard.gateway",)}[component]
    return lambda message: message.subject.startswith(own)


def audit_removed(vault: Vault, desk: Desk) -> str:
    _of(vault, desk, _by(desk, "audit"))
    return "NO_CHECKPOINT"


def audit_removed_and_times_moved(vault: Vault, desk: Desk) -> str:
    gone = _by(desk, "audit")
    rebuilt(vault, [m._replace(stored=m.stored - HOUR) for m in desk.streams.stored if not gone(m)])
    return "NO_CHECKPOINT"


def custody_removed_too(vault: Vault, desk: Desk) -> str:
    audit, custody = _by(desk, "audit"), _by(desk, "custody")
    _of(vault, desk, lambda m: audit(m) or custody(m))
    return "SILENT at SECURITY"


def custody_removed_before_it_renewed(vault: Vault, desk: Desk) -> str:
    audit, custody = _by(desk, "audit"), _by(desk, "custody")
    end = desk.streams.stored[0].stored + 85 * SECOND
    rebuilt(vault, [m for m in desk.streams.stored if m.stored < end and not audit(m) and not custody(m)])
    return "NO_CHECKPOINT"


def heartbeats_removed_too(vault: Vault, desk: Desk) -> str:
    audit, gateway = _by(desk, "audit"), _by(desk, "gateway")
    _of(vault, desk, lambda m: audit(m) or gateway(m))
    return "SILENT at SECURITY"


def guard_removed(vault: Vault, desk: Desk) -> str:
    audit = _by(desk, "audit")
    _of(vault, desk, lambda m: audit(m) or m.stream == "GUARD")
    return "SILENT at SECURITY"


def guard_removed_checkpoints_kept(vault: Vault, desk: Desk) -> str:
    _of(vault, desk, lambda m: m.stream == "GUARD")
    return "TOTAL at GUARD"


def market_cut(vault: Vault, desk: Desk) -> str:
    """The end of MARKET with every heartbeat that could tell, and audit."""
    audit = _by(desk, "audit")
    end = desk.streams.now - 65 * SECOND
    gone = ("md.", "guard.")
    _of(vault, desk, lambda m: audit(m) or (m.stored > end and m.subject.startswith(gone)))
    return "BEYOND at SIGNALS"


def later_checkpoints_removed(vault: Vault, desk: Desk) -> str:
    """Audit's messages after its first minute; its renewals stay."""
    audit = _by(desk, "audit")
    end = desk.streams.stored[0].stored + 70 * SECOND
    _of(vault, desk, lambda m: m.stored > end and audit(m))
    return "NO_CHECKPOINT"


ABSENT = [
    audit_removed, audit_removed_and_times_moved, custody_removed_too, custody_removed_before_it_renewed,
    heartbeats_removed_too, guard_removed, guard_removed_checkpoints_kept, market_cut, later_checkpoints_removed,
]  # fmt: skip


@pytest.mark.parametrize("attack", ABSENT, ids=lambda attack: attack.__name__)
def test_what_is_absent_gives_1_and_who_speaks_of_it(
    vault: Vault, desk: Desk, attack: Callable[[Vault, Desk], str]
) -> None:
    place = attack(vault, desk)
    problems = [str(problem) for problem in vault.verify().problems]
    assert any(place in problem for problem in problems), problems


def test_the_honest_desk_made_anew_is_clean(vault: Vault, desk: Desk) -> None:
    """The same way of making it, but for checkpoints that name other lines: nothing that sealed statements miss."""
    _of(vault, desk, lambda m: m.subject in ("audit.checkpoint", "guard.audit"))
    codes = {problem.code for problem in vault.verify().problems}
    assert codes == {"SILENT", "NO_CHECKPOINT"}  # of audit alone


def test_a_cut_end_shows_against_a_checkpoint_kept_elsewhere(vault: Vault, tmp_path: Path) -> None:
    """Without one it does not, and the output says what nothing covers."""
    manifest = vault.manifest
    kept = f"{manifest.count}:{manifest.head}"
    assert run(vault, "--expect", kept)[0] == 0
    assert run(vault, "--expect", f"{manifest.count}:{'0' * 64}")[0] == 1
    lines = (vault.path / MANIFEST).read_bytes().splitlines(keepends=True)
    (vault.path / MANIFEST).write_bytes(b"".join(lines[:-1]))
    for segment in manifest.entries[-1].segments:
        (vault.path / segment.file).unlink()
    code, output = run(vault)
    assert code == 0
    assert "no checkpoint covers them" in output
    file = tmp_path / "kept"
    file.write_text(kept + "\n")
    code, output = run(vault, "--expect", str(file))
    assert code == 1
    assert f"covers {manifest.count} lines, {manifest.count - 1} are there: the end was cut off" in output
