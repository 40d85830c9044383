"""Prefetching is a hint: it asks the kernel for whole files, in order, and never fails."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from prebake.prefetch import prefetch


def test_files_are_asked_for_whole_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def advise(descriptor: int, offset: int, length: int, advice: int) -> None:
        asked.append((str(Path(f"/proc/self/fd/{descriptor}").readlink()), offset, length, advice))

    monkeypatch.setattr(os, "posix_fadvise", advise)
    paths = [tmp_path / name for name in ("b", "a")]
    for path in paths:
        path.write_bytes(b"x")
    prefetch(paths).join()
    assert asked == [(str(path), 0, 0, os.POSIX_FADV_WILLNEED) for path in paths]


def test_absent_files_and_folders_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    open_before = len(list(Path("/proc/self/fd").iterdir()))
    prefetch([tmp_path / "absent", tmp_path, tmp_path / "file"]).join()
    assert len(list(Path("/proc/self/fd").iterdir())) == open_before


def test_a_refused_hint_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(29, "Illegal seek")

    monkeypatch.setattr(os, "posix_fadvise", refuse)
    (tmp_path / "file").write_bytes(b"x")
    prefetch([tmp_path / "file"]).join()


def test_systems_without_the_call_do_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fadvise")
    prefetch([tmp_path]).join()
