"""A list of what to read, and reading it: whole files, parts of others, the names in folders."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.page_cache import cached, forget
from prebake.startup import readahead
from prebake.startup.readahead import HEADER, PIECE, parse, read, text_of

NAMES = st.from_regex(r"/[^\t\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]+", fullmatch=True)
RANGES = st.lists(st.tuples(st.integers(0, 2**63), st.integers(1, 2**63)), max_size=3).map(tuple)
ENTRIES = st.lists(st.tuples(NAMES, RANGES))


@given(st.lists(st.tuples(ENTRIES, st.from_regex(r"[a-z_]+(\.[a-z_]+)*", fullmatch=True))), ENTRIES)
def test_a_list_reads_back_as_it_was_written(waited: list[readahead.Part], rest: list[readahead.Entry]) -> None:
    parts = [*waited, (rest, None)]
    assert parse(text_of(parts).splitlines()) == parts


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", f"expected {HEADER!r} in its first line, found ''"),
        ("prebake readahead 2\n/x\n", f"expected {HEADER!r} in its first line, found 'prebake readahead 2'"),
        (f"{HEADER}\n/x\t0+a\n", "invalid literal for int() with base 10: 'a'"),
    ],
)
def test_another_text_is_no_list(text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse(text.splitlines())
    assert str(caught.value) == message


def test_files_come_whole_and_of_others_the_ranges(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.write_bytes(os.urandom(3 * PIECE + 5000))
    parts.write_bytes(os.urandom(64 * PIECE))
    forget(whole)
    forget(parts)
    read([(str(whole), ()), (str(parts), ((8 * PIECE, PIECE), (20 * PIECE, 4096)))])
    assert cached(whole) == 1.0
    with parts.open("rb") as file:
        assert os.preadv(file.fileno(), [bytearray(PIECE)], 8 * PIECE, os.RWF_NOWAIT) == PIECE
        assert os.preadv(file.fileno(), [bytearray(4096)], 20 * PIECE, os.RWF_NOWAIT) == 4096
    assert cached(parts) < 0.5


def test_of_folders_the_names_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(os, "listdir", lambda path: asked.append(path) or [])  # type: ignore[func-returns-value]
    read([(f"{tmp_path}/", ()), (f"{tmp_path}/gone/", ())], readers=1)
    assert asked == [f"{tmp_path}/", f"{tmp_path}/gone/"]
    monkeypatch.undo()
    read([(f"{tmp_path}/gone/", ())])  # is passed over


def test_a_file_cut_short_or_gone_is_passed_over(tmp_path: Path) -> None:
    short = tmp_path / "short"
    short.write_bytes(b"x" * 10)
    open_before = len(list(Path("/proc/self/fd").iterdir()))
    read([("/nowhere", ()), (str(tmp_path), ()), (str(short), ((PIECE, PIECE),))])
    assert len(list(Path("/proc/self/fd").iterdir())) == open_before
