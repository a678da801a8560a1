"""What outlasts a crash: a file is the old or the new one, a line is there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tallystick.runtime.durable import append_durably, sync_tree, write_durably


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_durably(path, b"old", 0o600)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_durably(path, b"new", 0o600)
    assert path.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_failed_append_leaves_the_file_as_long_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "lines"
    append_durably(path, b"one\n", 0o640)
    assert path.stat().st_mode & 0o777 == 0o640
    real = os.write

    def half(descriptor: int, data: bytes) -> int:
        return real(descriptor, data[: len(data) // 2])

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, half if call == "write" else full)
    with pytest.raises(OSError, match="No space left"):
        append_durably(path, b"two\n", 0o640)
    monkeypatch.undo()
    assert path.read_bytes() == b"one\n"
    append_durably(path, b"two\n", 0o640)
    assert path.read_bytes() == b"one\ntwo\n"


def test_every_file_and_folder_of_a_tree_is_brought_onto_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_bytes(b"x")
    synced = []
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
    )
    sync_tree(tmp_path)
    assert sorted(synced) == [str(tmp_path), *(str(tmp_path / name) for name in ("a", "a/b", "a/b/file"))]
