"""Copies are hashed while they are made; what is not the promised file is said and not followed."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from prebake.baked.manifest import File
from prebake_build.files.copying import copy_checked
from prebake_build.files.digest import file_of


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("source/sub", "target"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "source/sub/w").write_bytes(os.urandom(9_000_001))
    return tmp_path / "source", tmp_path / "target"


@pytest.mark.parametrize("shared", [True, False], ids=["blocks shared", "copied"])
def test_a_file_is_copied_with_its_folder(
    places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    source, target = places
    content = (source / "sub/w").read_bytes()
    if shared:  # what the ioctl does where the file system can
        monkeypatch.setattr("fcntl.ioctl", lambda writing, _, reading: os.write(writing, os.read(reading, 1 << 24)))
    assert copy_checked(source, target, file_of(source, "sub/w")) is None
    assert (target / "sub/w").read_bytes() == content


def test_an_empty_file(places: tuple[Path, Path]) -> None:
    source, target = places
    (source / "empty").touch()
    assert copy_checked(source, target, file_of(source, "empty")) is None
    assert (target / "empty").read_bytes() == b""


def flipped(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(5_000_000)
        byte = file.read(1)
        file.seek(5_000_000)
        file.write(bytes([byte[0] ^ 1]))


def as_link(path: Path) -> None:
    path.rename(path.with_name("other"))
    path.symlink_to("other")


def as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (Path.unlink, "sub/w: missing"),
        (lambda path: os.truncate(path, 10), "sub/w: expected 9,000,001 bytes, found 10"),
        (flipped, "sub/w: expected sha256 "),
        (as_link, "sub/w: Too many levels of symbolic links"),
        (as_pipe, "sub/w: is not a regular file"),
    ],
    ids=["missing", "truncated", "flipped", "link", "pipe"],
)
def test_another_file_is_a_finding(places: tuple[Path, Path], spoil: Callable[[Path], None], said: str) -> None:
    source, target = places
    file = file_of(source, "sub/w")
    spoil(source / "sub/w")
    assert (copy_checked(source, target, file) or "").startswith(said)


def test_a_disk_that_cannot_be_read_is_a_finding(places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = places

    def broken(handle: int, into: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("os.readv", broken)
    assert copy_checked(source, target, file_of(source, "sub/w")) == "sub/w: Input/output error"


def test_a_list_that_has_a_file_twice_or_below_another_is_a_finding(places: tuple[Path, Path]) -> None:
    source, target = places
    file = file_of(source, "sub/w")
    assert copy_checked(source, target, file) is None
    assert copy_checked(source, target, file) == "sub/w: is listed twice, or below another file"
    (source / "sub/w").rename(source / "x")
    (source / "sub/w").mkdir()
    (source / "x").rename(source / "sub/w/x")
    below = File(path="sub/w/x", size=file.size, sha256=file.sha256)
    assert copy_checked(source, target, below) == "sub/w/x: is listed twice, or below another file"
