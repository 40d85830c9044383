"""What a start reads is written down: files it opens in order, of mapped files the pages it touched, and no others."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prebake.startup.readahead import Entry, parse
from prebake.startup.recorder import GAP, HEAD, LARGE, PAGE, ranges, touched


def test_pages_make_ranges_and_small_gaps_end_none() -> None:
    gap = GAP // PAGE
    assert ranges([]) == ()
    assert ranges([3, 2, 1]) == ((PAGE, 3 * PAGE),)
    assert ranges([0, gap]) == ((0, (gap + 1) * PAGE),)
    assert ranges([0, gap + 2]) == ((0, PAGE), ((gap + 2) * PAGE, PAGE))


def test_of_a_mapped_file_the_touched_pages_are_known(tmp_path: Path) -> None:
    path = tmp_path / "mapped"
    path.write_bytes(os.urandom(8 << 20))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ) as pages:
        pages.madvise(mmap.MADV_RANDOM)
        assert touched()[str(path)] == set()
        assert pages[5 << 20] is not None
        found = touched()[str(path)]
    page = (5 << 20) // PAGE
    assert page in found
    assert all(abs(other - page) * PAGE <= 2 << 20 for other in found)  # what the kernel maps around it, no more


START = f"""
import sys
from prebake.startup.recorder import Recorder
recorder = Recorder()
recorder.begin()
import bz2, json.tool, mmap
open(sys.argv[1] + "/first").close()
open(sys.argv[1] + "/large", "rb").close()
large = open(sys.argv[1] + "/mapped", "rb")
pages = mmap.mmap(large.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE)
pages.madvise(mmap.MADV_RANDOM)
pages[{16 << 20}]
open("/proc/self/stat").close()
open("/dev/null").close()
open(sys.argv[1] + "/gone", "w").close()
import os
os.remove(sys.argv[1] + "/gone")
recorder.ready()
open(sys.argv[1] + "/later").close()
pages[{24 << 20}]
without = [__import__("pathlib").Path(path) for path in sys.argv[2:]]
print(recorder.text(without=without), end="")
open(sys.argv[1] + "/after-all").close()
print(len(recorder.text().splitlines()), file=sys.stderr)
"""


def record(folder: Path, *without: Path) -> list[Entry]:
    """The list of a small start, in a process of its own: audit hooks stay."""
    done = subprocess.run([sys.executable, "-c", START, folder, *without], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert done.stderr == f"{len(lines)}\n" or without
    return entries_of(lines)


def entries_of(lines: list[str]) -> list[Entry]:
    return [entry for entries, _ in parse(lines) for entry in entries]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for name, size in (("first", 10), ("later", 10), ("after-all", 10), ("large", LARGE + 1), ("mapped", 32 << 20)):
        (tmp_path / name).write_bytes(os.urandom(min(size, 64)))
        os.truncate(tmp_path / name, size)
    return tmp_path


def test_files_stand_in_the_order_in_which_they_were_opened(files: Path) -> None:
    entries = record(files)
    names = [Path(path).name for path, _ in entries if Path(path).parent == files]
    assert names == ["first", "large", "mapped", "later", "mapped"]


def test_byte_code_is_listed_whole(files: Path) -> None:
    (entry,) = [entry for entry in record(files) if entry[0].endswith(f"/tool.{sys.implementation.cache_tag}.pyc")]
    assert entry[1] == ()


def test_of_large_files_the_head_and_of_mapped_ones_what_was_touched_before_and_after_ready(files: Path) -> None:
    entries = record(files)
    (large,) = [found for path, found in entries if path == str(files / "large")]
    first, later = (found for path, found in entries if path == str(files / "mapped"))
    assert large == ((0, HEAD),)
    assert first[0] == (0, HEAD)
    assert any(begin <= 16 << 20 < begin + length for begin, length in first)
    assert any(begin <= 24 << 20 < begin + length for begin, length in later)
    assert not any(begin <= 24 << 20 < begin + length for begin, length in first)
    assert sum(length for _, length in (*first, *later)) < 8 << 20


def test_what_another_reads_ahead_is_left_out_once_the_start_is_ready(files: Path) -> None:
    entries = record(files, files / "mapped")
    assert [Path(path).name for path, _ in entries if Path(path).parent == files] == [
        "first", "large", "mapped", "later"
    ]  # fmt: skip


def test_what_has_no_disk_or_is_gone_is_not_listed(files: Path) -> None:
    paths = {path for path, _ in record(files)}
    assert str(files / "gone") not in paths
    assert not [path for path in paths if path.startswith(("/proc/", "/dev/", "/sys/"))]


def test_a_library_is_listed_where_the_import_began_that_brought_it(files: Path) -> None:
    paths = [path for path, _ in record(files)]
    extension = next(number for number, path in enumerate(paths) if "/_bz2." in path and path.endswith(".so"))
    brought = next(number for number, path in enumerate(paths) if "/libbz2" in path)
    assert abs(brought - extension) <= 2
    assert brought < paths.index(str(files / "first"))


def test_check_records_a_start_of_real_models(tiny_models: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "prebake", "check", "--root", tiny_models, "--record-reads", tmp_path / "list"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "caption: mapped in" in done.stdout
    lines = (tmp_path / "list").read_text().splitlines()
    entries = entries_of(lines)
    paths = [path for path, _ in entries]
    (first, *_) = (found for path, found in entries if path.endswith("/libtorch_cpu.so"))
    size = Path(next(path for path in paths if path.endswith("/libtorch_cpu.so"))).stat().st_size
    # right after an installation the kernel maps more around each fault: 0.27 of it
    assert 0 < sum(length for _, length in first) < size / 2
    assert sum(path.endswith(".pyc") for path in paths) > 500
    assert str(tiny_models / "caption" / "manifest.json") in paths
    folders = [path for path in paths if path.endswith("/")]
    assert paths[: len(folders)] == folders
    assert all(Path(path).is_dir() for path in folders)
    assert all(Path(path).is_file() for path in paths[len(folders) :])
    # names are looked up there: of sources, of libraries, of what may be a package, of what is not there
    torch = Path(next(path for path in paths if path.endswith("/libtorch_cpu.so"))).parent.parent
    assert {f"{torch}/", f"{torch}/__pycache__/", f"{torch}/lib/", f"{torch}/_C/"} <= set(folders)
    # torch's libraries are heavy: their import waits, and what needs no torch was imported before
    parts = parse(lines)
    waiting = [module for _, module in parts]
    assert parts[-1][1] is None
    until = waiting.index("torch._C") + 1
    before = [path for entries, _ in parts[:until] for path, _ in entries]
    assert {"libtorch_cpu.so", "libtorch_python.so"} <= {Path(path).name for path in before}
    assert any("/cv2/" in path for path in before)
    assert any("/huggingface_hub/" in path for path in before)
    assert not any("/transformers/models/" in path and not path.endswith("/") for path in before)
