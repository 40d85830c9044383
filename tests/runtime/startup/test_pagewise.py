"""Libraries loaded while a start is recorded are mapped in pieces, so that few pages around a touched one are told."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from prebake.startup import pagewise
from prebake.startup.pagewise import LARGE, MAPPINGS, PIECE, Pagewise

HERE = sys.platform == "linux" and platform.machine() == "x86_64" and platform.libc_ver()[0] == "glibc"
needs_it = pytest.mark.skipif(not HERE, reason="works with glibc on x86-64 alone")

TOUCHED = """
import sys
from contextlib import nullcontext
from prebake.startup.pagewise import Pagewise
from prebake.startup.recorder import _mappings, touched
pagewise = Pagewise()
with pagewise if "cut" in sys.argv else nullcontext():
    works = pagewise.works
    import torch
names = [path.rpartition("/")[2] for path, *_ in _mappings()]
pages = {path.rpartition("/")[2]: len(found) for path, found in touched().items()}
print(works, pagewise.loads, names.count("libtorch_cpu.so"), pages["libtorch_cpu.so"])
import cmath, _decimal, sqlite3  # whoever loads afterwards is left alone
print(pagewise.loads, torch.ones(3).sum().item())
"""


def importing_torch(*arguments: str) -> tuple[list[str], list[str]]:
    done = subprocess.run([sys.executable, "-c", TOUCHED, *arguments], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    return first.split(), second.split()


@needs_it
def test_a_large_library_is_mapped_in_pieces_and_less_of_it_told_as_touched() -> None:
    (_, _, mappings, whole), _ = importing_torch()
    (works, loads, cut, pages), (afterwards, total) = importing_torch("cut")
    assert int(mappings) < 10
    assert works == "True"
    assert int(loads) > 5
    assert 1_000 < int(cut) < MAPPINGS
    assert 0 < int(pages) < 0.8 * int(whole)
    assert (afterwards, total) == (loads, "3.0")


@needs_it
def test_code_is_as_it_was_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    import ctypes

    place = ctypes.cast(ctypes.CDLL(None)._dl_debug_state, ctypes.c_void_p).value or 0
    before = ctypes.string_at(place, 16)
    with Pagewise() as cutting:
        assert cutting.works
        assert ctypes.string_at(place, 16) != before
        with pytest.raises(ZeroDivisionError), Pagewise() as inner:
            assert not inner.works  # the function is not what it should be
            raise ZeroDivisionError
    assert not cutting.works
    assert ctypes.string_at(place, 16) == before


def test_on_another_processor_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with Pagewise() as cutting:
        assert not cutting.works
    assert cutting.loads == 0


def test_where_the_c_library_has_no_such_function_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    class Musl:
        pass

    monkeypatch.setattr("ctypes.CDLL", lambda name: Musl())
    with Pagewise() as cutting:
        assert not cutting.works


@needs_it
def test_where_code_must_not_be_written_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pagewise, "_overwrite", lambda self, code: False)
    with Pagewise() as cutting:
        assert not cutting.works


@needs_it
def test_mappings_are_not_used_up(monkeypatch: pytest.MonkeyPatch) -> None:
    cutting = Pagewise()
    assert 0 < cutting._left < pagewise._most_mappings()
    monkeypatch.setattr(cutting, "_left", 8 * LARGE // PIECE - 1)
    monkeypatch.setattr(pagewise, "_segments", lambda base: [segment(8 * LARGE)])
    advised: list[object] = []
    monkeypatch.setattr(cutting, "_libc", SimpleNamespace(madvise=lambda *arguments: advised.append(arguments)))
    cutting._cut(1 << 40)
    assert advised == []
    monkeypatch.setattr(cutting, "_left", 8 * LARGE // PIECE + 5)
    cutting._cut(1 << 40)
    assert len(advised) == 8 * LARGE // PIECE // 2
    assert cutting._left == 5


def segment(length: int) -> pagewise._Segment:
    return pagewise._Segment(kind=1, in_file=length)


@needs_it
def test_what_is_no_library_has_no_segments() -> None:
    assert pagewise._segments(0) == []  # not mapped
    assert pagewise._segments(1 << 46) == []


@needs_it
def test_segments_are_those_of_the_file() -> None:
    base, path = next(
        (int(line.split("-")[0], 16), Path(line.split(None, 5)[5].strip()))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.split()[2] == "00000000" and "/libc.so" in line
    )
    segments = pagewise._segments(base)
    assert segments[0].offset == 0
    assert sum(segment.in_file for segment in segments) <= path.stat().st_size
    assert all(segment.alignment >= 4096 for segment in segments)
    assert PIECE % 4096 == 0
