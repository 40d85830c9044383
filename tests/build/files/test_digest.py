"""Hashes, lists and checks of files; writing whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prebake.baked.manifest import File
from prebake.errors import IntegrityError, SourceError
from prebake_build.files import digest


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def test_hashes_are_those_of_hashlib_across_chunks(tmp_path: Path) -> None:
    body = os.urandom(2 * digest.CHUNK + 7)
    (tmp_path / "x").write_bytes(body)
    assert digest.sha256_of(tmp_path / "x") == sha256(body)
    assert digest.md5_of(tmp_path / "x") == hashlib.md5(body).hexdigest()


def test_files_are_listed_sorted_by_their_whole_path(checkpoint: Path) -> None:
    (checkpoint / "sub.txt").write_text("x")
    (checkpoint / "empty").mkdir()
    assert [file.path for file in digest.files_of(checkpoint)] == [
        "config.json", "sub.txt", "sub/extra.txt", "weights.bin",
    ]  # fmt: skip
    assert digest.files_of(checkpoint)[0] == File(path="config.json", size=2, sha256=sha256(b"{}"))


def test_hidden_files_are_left_out_only_where_asked(checkpoint: Path) -> None:
    (checkpoint / ".git").mkdir()
    (checkpoint / ".git" / "x").write_text("x")
    (checkpoint / "sub" / ".DS_Store").write_text("x")
    assert ".git/x" in digest.paths_of(checkpoint)
    assert digest.paths_of(checkpoint, hidden=False) == ("config.json", "sub/extra.txt", "weights.bin")


def test_everything_that_is_no_plain_file_is_refused_at_once(checkpoint: Path) -> None:
    (checkpoint / "link").symlink_to("config.json")
    (checkpoint / "sub" / "folder").symlink_to("..")
    os.mkfifo(checkpoint / "pipe")
    (checkpoint / "a\\b").write_text("x")
    with pytest.raises(IntegrityError) as error:
        digest.files_of(checkpoint)
    assert str(error.value) == (
        f"{checkpoint}: not only plain files:\n"
        '  "a\\\\b": has a name that a manifest cannot contain\n'
        "  link: is a symlink to config.json\n"
        "  pipe: is not a regular file\n"
        "  sub/folder: is a symlink to .."
    )


def test_a_folder_that_fits_its_list_passes(checkpoint: Path) -> None:
    files = digest.files_of(checkpoint)
    digest.check_files(checkpoint, files)
    (checkpoint / "manifest.json").write_text("{}")
    digest.check_files(checkpoint, files, allow={"manifest.json"})


def test_each_mismatch_is_listed(checkpoint: Path) -> None:
    files = digest.files_of(checkpoint)
    (checkpoint / "config.json").write_text("[]")
    (checkpoint / "sub" / "extra.txt").unlink()
    (checkpoint / "weights.bin").write_bytes(b"w")
    (checkpoint / "new").write_text("")
    with pytest.raises(IntegrityError) as error:
        digest.check_files(checkpoint, files, label="caption")
    assert str(error.value) == (
        "caption: not the files that were promised:\n"
        f"  config.json: expected sha256 {sha256(b'{}')}, found {sha256(b'[]')}\n"
        "  sub/extra.txt: missing\n"
        "  weights.bin: expected 700 bytes, found 1\n"
        "  new: not listed"
    )


def test_without_hashes_only_sizes_count(checkpoint: Path) -> None:
    files = digest.files_of(checkpoint)
    (checkpoint / "config.json").write_text("[]")
    digest.check_files(checkpoint, files, hashes=False)


PATHS = st.from_regex(r"[a-z]{1,3}(/[a-z]{1,3}){0,2}", fullmatch=True)


@given(st.dictionaries(PATHS, st.binary(max_size=20), max_size=6))
def test_what_is_listed_is_what_is_there(contents: dict[str, bytes]) -> None:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as name:
        written = {}
        for path, body in contents.items():
            try:
                (Path(name) / path).parent.mkdir(parents=True, exist_ok=True)
                (Path(name) / path).write_bytes(body)
            except OSError:  # a file where a folder is wanted
                continue
            written[path] = body
        files = digest.files_of(Path(name))
        assert [(file.path, file.size, file.sha256) for file in files] == [
            (path, len(body), sha256(body)) for path, body in sorted(written.items())
        ]
        digest.check_files(Path(name), files)


def test_only_a_full_disk_becomes_the_message_about_space(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as error, digest.disk_full_as("caption", tmp_path):
        raise OSError(errno.EDQUOT, "Disk quota exceeded", "/x/y")
    assert str(error.value) == (
        "caption: no space left while writing below /x/y: free some space, run `prebake cache prune`, "
        "or put the cache elsewhere with --cache or PREBAKE_CACHE"
    )
    with pytest.raises(PermissionError), digest.disk_full_as("caption", tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied")
