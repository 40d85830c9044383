"""Prefetching is a hint: it reads what is not in the page cache, in order, and never fails."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from page_cache import cached, forget
from prebake.prefetch import PIECE, prefetch


def test_a_file_that_was_forgotten_is_in_the_page_cache_whole(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(48 * PIECE + 5000))
    forget(path)
    prefetch([path]).join()
    assert cached(path) == 1.0


def test_what_is_cached_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[str, int]] = []
    plain = os.preadv

    def spy(descriptor: int, buffers: list[bytearray], offset: int, flags: int = 0) -> int:
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        if not flags:
            read.append((name, offset))
        return plain(descriptor, buffers, offset, flags)

    paths = [tmp_path / name for name in ("b", "a")]
    for path in paths:
        path.write_bytes(bytes(2 * PIECE + 1))
    monkeypatch.setattr(os, "preadv", spy)
    prefetch(paths).join()
    assert read == []

    def would_wait(descriptor: int, buffers: list[bytearray], offset: int, flags: int = 0) -> int:
        if flags:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return spy(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", would_wait)
    prefetch(paths).join()
    assert read == [(name, offset) for name in ("b", "a") for offset in (0, PIECE, 2 * PIECE)]


def test_absent_files_folders_and_empty_files_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "empty").write_bytes(b"")
    open_before = len(list(Path("/proc/self/fd").iterdir()))
    prefetch([tmp_path / "absent", tmp_path, tmp_path / "empty", tmp_path / "file"]).join()
    assert len(list(Path("/proc/self/fd").iterdir())) == open_before


def test_a_disk_that_fails_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    (tmp_path / "file").write_bytes(b"x")
    prefetch([tmp_path / "file"]).join()


def test_systems_that_cannot_tell_what_is_cached_read_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    plain = os.preadv

    def spy(descriptor: int, buffers: list[bytearray], offset: int) -> int:
        read.append(offset)
        return plain(descriptor, buffers, offset)

    monkeypatch.delattr(os, "RWF_NOWAIT")
    monkeypatch.setattr(os, "preadv", spy)
    (tmp_path / "file").write_bytes(bytes(PIECE + 1))
    prefetch([tmp_path / "file"]).join()
    assert read == [0, PIECE]
