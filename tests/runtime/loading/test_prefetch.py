"""Prefetching is a hint: it reads what is not in the page cache, in order, and never fails."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

import pytest

from helpers.page_cache import cached, forget
from prebake.loading.prefetch import PIECE, Prefetch


def read_through(paths: list[Path]) -> None:
    prefetch = Prefetch()
    prefetch.add(paths)
    prefetch.join()


def test_a_file_that_was_forgotten_is_in_the_page_cache_whole(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(48 * PIECE + 5000))
    forget(path)
    read_through([path])
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
    read_through(paths)
    assert read == []

    def would_wait(descriptor: int, buffers: list[bytearray], offset: int, flags: int = 0) -> int:
        if flags:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return spy(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", would_wait)
    read_through(paths)
    assert read == [(name, offset) for name in ("b", "a") for offset in (0, PIECE, 2 * PIECE)]


def test_absent_files_folders_and_empty_files_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "empty").write_bytes(b"")
    open_before = len(list(Path("/proc/self/fd").iterdir()))
    read_through([tmp_path / "absent", tmp_path, tmp_path / "empty", tmp_path / "file"])
    assert len(list(Path("/proc/self/fd").iterdir())) == open_before


def test_a_disk_that_fails_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def fail(descriptor: int, *_: object) -> int:
        asked.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    for name in ("file", "next"):
        (tmp_path / name).write_bytes(b"x")
    read_through([tmp_path / "file", tmp_path / "next"])
    assert list(dict.fromkeys(asked)) == ["file", "next"]


def test_systems_that_cannot_tell_what_is_cached_read_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    plain = os.preadv

    def spy(descriptor: int, buffers: list[bytearray], offset: int) -> int:
        read.append(offset)
        return plain(descriptor, buffers, offset)

    monkeypatch.delattr(os, "RWF_NOWAIT")
    monkeypatch.setattr(os, "preadv", spy)
    (tmp_path / "file").write_bytes(bytes(PIECE + 1))
    read_through([tmp_path / "file"])
    assert read == []  # cached, as samples show
    forget(tmp_path / "file")
    read_through([tmp_path / "file"])
    assert read == [0, PIECE]


def test_what_somebody_waits_for_is_read_before_the_rest_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefetch, read = Prefetch(), list[str]()
    others, wanted, last = (tmp_path / name for name in ("others", "wanted", "last"))
    for path in (others, wanted, last):
        path.write_bytes(bytes(3 * PIECE))
    plain = os.preadv

    def spy(descriptor: int, buffers: list[bytearray], offset: int, flags: int = 0) -> int:
        if flags:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        read.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        if len(read) == 1:
            prefetch.first([wanted])
        return plain(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", spy)
    prefetch.add([others, wanted, last])
    prefetch.join()
    assert read == ["others", *["wanted"] * 3, *["others"] * 2, *["last"] * 3]
    prefetch.first([wanted])  # nothing is left of it
    prefetch.add([last])
    prefetch.join()
    assert read[9:] == ["last"] * 3


def test_no_more_is_read_than_memory_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What fits is read in order; what does not is left out, whole."""
    for name, pieces in (("first", 2), ("large", 9), ("second", 3), ("third", 1)):
        (tmp_path / name).write_bytes(bytes(pieces * PIECE))
    read = _names_read(monkeypatch)
    prefetch = Prefetch(lambda: 5 * PIECE)
    with caplog.at_level(logging.INFO, "prebake.loading.prefetch"):
        prefetch.add(tmp_path / name for name in ("first", "large", "gone", "second", "third"))
        prefetch.join()
    assert read == ["first"] * 2 + ["second"] * 3
    assert caplog.messages == [
        f"{tmp_path}/large: not prefetched: {9 * PIECE} bytes, {3 * PIECE} bytes are free",
        f"{tmp_path}/third: not prefetched: {PIECE} bytes, 0 bytes are free",
    ]


def test_what_is_still_to_be_read_needs_memory_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("first", "second"):
        (tmp_path / name).write_bytes(bytes(3 * PIECE))
    read = _names_read(monkeypatch)
    prefetch = Prefetch(lambda: 5 * PIECE)
    with prefetch._lock:  # nothing is read meanwhile
        prefetch._unread.append((tmp_path / "first", iter([None])))
    prefetch.add([tmp_path / "second"])
    prefetch.join()
    assert read == []


def test_where_nobody_knows_how_much_is_free_all_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(bytes(PIECE))
    read = _names_read(monkeypatch)
    prefetch = Prefetch(lambda: None)
    prefetch.add([tmp_path / "file"])
    prefetch.join()
    assert read == ["file"]


def test_it_can_be_turned_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREBAKE_PREFETCH", "0")
    (tmp_path / "file").write_bytes(bytes(PIECE))
    read = _names_read(monkeypatch)
    read_through([tmp_path / "file"])
    assert read == []


def _names_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The file of each piece that is read; none is in the page cache."""
    read: list[str] = []
    plain = os.preadv

    def spy(descriptor: int, buffers: list[bytearray], offset: int, flags: int = 0) -> int:
        if flags:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        read.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        return plain(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", spy)
    return read


def test_a_system_that_allows_no_thread_is_no_error_and_the_next_files_are_read_after_those_that_waited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    read: list[str] = []
    plain = os.preadv

    def spy(descriptor: int, buffers: list[bytearray], offset: int, flags: int = 0) -> int:
        read.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        return plain(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", spy)
    for name in ("first", "second", "third"):
        (tmp_path / name).write_bytes(b"x")
    prefetch = Prefetch()
    with monkeypatch.context() as limited:
        limited.setattr(threading.Thread, "start", no_thread)
        prefetch.add([tmp_path / "first"])
        prefetch.add([tmp_path / "second"])
        prefetch.join()
    assert read == []
    assert caplog.record_tuples == [
        (
            "prebake.loading.prefetch",
            logging.WARNING,
            "weights are not prefetched: can't start a thread (can't start new thread); the next load tries again",
        )
    ]
    prefetch.add([tmp_path / "third"])
    prefetch.join()
    assert list(dict.fromkeys(read)) == ["first", "second", "third"]


def no_thread(self: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")
