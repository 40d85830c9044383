"""Tar entries are those that BuildKit writes; test_oci_engine.py holds them against the real one."""

from __future__ import annotations

import io
import tarfile

import pytest

from prebake_build.images import tar

LONG = "models/m/" + "d" * 60 + "/" + "f" * 90 + ".safetensors"


def read(data: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data), format=tarfile.PAX_FORMAT) as archive:
        return archive.getmembers()


@pytest.mark.parametrize("name", ["models/m/a.bin", LONG, "models/m/가중치.bin", "models/m/" + "x" * 100])
def test_a_file_is_read_back_with_its_name_size_mode_and_no_time(name: str) -> None:
    (found,) = read(tar.file_entry(name, 3) + b"abc" + tar.padding(3) + tar.END)
    assert (found.name, found.size, found.mode, found.mtime, found.uid, found.gid) == (name, 3, 0o644, 0, 0, 0)
    assert found.isreg()


@pytest.mark.parametrize("name", ["models", "models/" + "d" * 120, "models/폴더"])
def test_a_folder_is_read_back(name: str) -> None:
    (found,) = read(tar.folder_entry(name) + tar.END)
    assert (found.name, found.isdir(), found.mode, found.mtime) == (name, True, 0o755, 0)


@pytest.mark.parametrize("target", ["../m/a", "../" + "t" * 120, "../모델/a"])
@pytest.mark.parametrize("name", ["models/.hub/a", LONG])
def test_a_link_is_read_back(name: str, target: str) -> None:
    (found,) = read(tar.link_entry(name, target) + tar.END)
    assert (found.name, found.issym(), found.linkname, found.size, found.mtime) == (name, True, target, 0, 0)


def test_a_file_above_8_gib_has_its_size_in_an_extended_header() -> None:
    entry = tar.file_entry("m.safetensors", 9 << 30)
    with tarfile.open(fileobj=io.BytesIO(entry + bytes(512))) as archive:
        found = archive.next()
    assert found and (found.size, found.pax_headers) == (9 << 30, {"size": str(9 << 30)})


def test_headers_have_the_bytes_of_go_and_not_of_python() -> None:
    header = tar.folder_entry("models")
    assert header[257:265] == b"ustar\x0000"
    assert header[329:345] == b"0000000\x000000000\x00"
    assert header[148:156] == b"010470\x00 "


@pytest.mark.parametrize("name", ["m/model.safetensors", LONG])
@pytest.mark.parametrize("position", [0, 512, 2048, 3072, 3584, 4096, 10_240])
def test_aligned_data_starts_on_a_page(name: str, position: int) -> None:
    entry = tar.file_entry(name, 3, position=position, align=4096)
    assert (position + len(entry)) % 4096 == 0
    (found,) = read(entry + b"abc" + tar.padding(3) + tar.END)
    assert (found.name, found.size) == (name, 3)
    assert set(found.pax_headers) <= {"comment", "path"}


def test_no_comment_where_the_data_is_aligned_anyway() -> None:
    assert tar.file_entry("m", 3, position=3584, align=4096) == tar.file_entry("m", 3)
