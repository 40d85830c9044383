"""A document is there whole, the old one or the new one, with nothing beside it."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from prebake_build.files import atomic
from prebake_build.files.flock import locked


def test_a_document_is_written_with_the_umasks_mode_and_nothing_beside_it(tmp_path: Path) -> None:
    atomic.write_text(tmp_path / "x.json", "á\n")
    assert (tmp_path / "x.json").read_bytes() == "á\n".encode()
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((tmp_path / "x.json").stat().st_mode) == 0o666 & ~mask
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_a_write_that_fails_leaves_the_old_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    atomic.write_text(tmp_path / "x.json", "old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        atomic.write_text(tmp_path / "x.json", "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("x.json", "old")]


def test_what_a_killed_process_left_is_removed_by_the_next_write_and_what_another_writes_now_is_not(
    tmp_path: Path,
) -> None:
    left, others = tmp_path / ".models.lock.0ld.tmp", tmp_path / ".models.lock.n3w.tmp"
    left.write_text("half")
    handle = locked(others, exclusive=True)
    atomic.write_text(tmp_path / "models.lock", "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".models.lock.n3w.tmp", "models.lock"]
    os.close(handle)


def test_a_temporary_file_that_another_process_cleared_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def clear_the_first(handle: int, operation: int) -> None:
        (found,) = tmp_path.glob(".models.lock.*.tmp")
        made.append(found.name)
        if len(made) == 1:
            found.unlink()

    monkeypatch.setattr("prebake_build.files.atomic.fcntl.flock", clear_the_first)
    atomic.write_text(tmp_path / "models.lock", "whole")
    assert (tmp_path / "models.lock").read_text() == "whole"
    assert len(set(made)) == 2 and [path.name for path in tmp_path.iterdir()] == ["models.lock"]
