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


def test_a_folder_that_cannot_be_replaced_stays_where_the_kernel_cannot_exchange(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("work/m", "m"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "m" / "old").touch()
    rename = Path.rename

    def failing(path: Path, target: Path) -> Path:
        if path == tmp_path / "work" / "m":
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: object())  # no renameat2
    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="Input/output error"):
        atomic.put_in_place(tmp_path / "work" / "m", tmp_path / "m")
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["old"]


def test_what_a_killed_command_moved_away_is_put_back_whatever_it_is_called(tmp_path: Path) -> None:
    (tmp_path / ".work-a[1].x" / f"a[1].v2{atomic.REPLACED}" / "old").mkdir(parents=True)
    atomic.clear_leftovers(tmp_path, ".work-a[1].")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["a[1].v2", "a[1].v2/old"]


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
