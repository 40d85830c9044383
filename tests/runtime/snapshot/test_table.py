"""The table, and the C code that checks it before the restorer uses it."""

from __future__ import annotations

import ctypes
import random
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prebake.snapshot import table
from prebake.snapshot.programs import SOURCES, Library
from prebake.snapshot.table import COPIED, MAPPED, MEMORY_IMG, NO_FILE, SHARED, File, Mapping, Reading, Table, Vdso

BASE = 0x7000_0000_0000


def sound(**changes: object) -> Table:
    mappings = [
        Mapping(start=BASE, bytes=0x2000, protection=5, file=0, offset=0x1000),
        Mapping(start=BASE + 0x2000, bytes=0x1000, protection=3, file=MEMORY_IMG, offset=0x1000),
        Mapping(start=BASE + 0x3000, bytes=0x1000, protection=3, file=MEMORY_IMG, kind=COPIED, offset=0x2000),
        Mapping(start=BASE + 0x8000, bytes=0x1000, protection=0),
    ]
    arguments: dict[str, object] = {
        "id": bytes(range(16)), "image_bytes": 0x3000, "resume": BASE + 8, "frame": BASE + 0x2010,
        "vdso": Vdso(data=BASE + 0x10000, start=BASE + 0x14000, end=BASE + 0x16000, checksum=1, entries=((64, 228),)),
        "memory": [0] * 11, "cpu": [0] * 12, "mappings": mappings,
        "files": [File(path="/lib/x.so", bytes=12345, head=7, mtime_ns=10**9 + 5)],
        "bound": ["A=1"], "names": ["-B_X", "B_*"],
        "readings": [Reading(file=MEMORY_IMG, offset=0x1000, bytes=0x2000), Reading(file=0, offset=0, bytes=0x1000)],
    }  # fmt: skip
    return Table(**(arguments | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def library(native: Path) -> Library:
    return Library(native / "libprebake-pause.so")


def test_a_sound_table_is_accepted(library: Library) -> None:
    assert library.check(sound().to_bytes()) is None


def test_both_sides_compute_the_same_checksum(library: Library) -> None:
    function = library._library.prebake_checksum
    function.restype, function.argtypes = ctypes.c_uint64, [ctypes.c_char_p, ctypes.c_uint64]
    for size in (0, 1, 7, 8, 9, 4096):
        data = random.Random(size).randbytes(size)
        assert function(data, size) == table.checksum(data)


def _mapping(**changes: int) -> list[Mapping]:
    first, *others = sound().mappings
    values = {name: getattr(first, name) for name in ("start", "bytes", "protection", "kind", "file", "offset")}
    return [Mapping(**(values | changes)), *others]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mappings": _mapping(start=BASE + 1)}, "a mapping is not aligned to pages"),
        ({"mappings": _mapping(bytes=0)}, "a mapping is not aligned to pages"),
        ({"mappings": _mapping(bytes=0x3000)}, "a mapping overlaps another, or lies outside the address space"),
        ({"mappings": _mapping(start=0x300000)}, "a mapping overlaps another, or lies outside the address space"),
        ({"mappings": _mapping(bytes=1 << 63)}, "a mapping overlaps another, or lies outside the address space"),
        ({"mappings": _mapping(protection=8)}, "a mapping has an unknown kind or protection"),
        ({"mappings": _mapping(kind=3)}, "a mapping has an unknown kind or protection"),
        ({"mappings": _mapping(kind=COPIED)}, "a mapping copies from something other than memory.img"),
        ({"mappings": _mapping(kind=SHARED, protection=3)}, "a shared mapping is writable, or has no file"),
        ({"mappings": _mapping(kind=SHARED, file=NO_FILE)}, "a shared mapping is writable, or has no file"),
        ({"mappings": _mapping(file=1)}, "a mapping names a file that is not in the table"),
        ({"mappings": _mapping(file=MEMORY_IMG, offset=0)}, "a mapping lies outside memory.img"),
        ({"mappings": _mapping(file=MEMORY_IMG, offset=0x2000)}, "a mapping lies outside memory.img"),
        ({"mappings": _mapping(offset=1 << 62)}, "a mapping lies outside its file"),
        ({"mappings": []}, "the process has no code to go on with"),
        ({"resume": BASE + 0x2000}, "the process has no code to go on with"),
        ({"frame": BASE}, "the process has no frame to go on with"),
        ({"image_bytes": 0}, "memory.img has no valid size"),
        ({"image_bytes": 4097}, "memory.img has no valid size"),
        ({"files": []}, "a mapping names a file that is not in the table"),
        ({"files": [File(path="x.so", bytes=1, head=1, mtime_ns=0)]}, "a file has no absolute path"),
        ({"vdso": Vdso(data=0, start=0, end=0, checksum=0, entries=())}, "the vDSO lies outside the address space"),
        ({"vdso": Vdso(data=BASE, start=BASE, end=BASE + 4096, checksum=0, entries=())}, "a mapping overlaps the vDSO"),
        ({"vdso": Vdso(data=BASE << 1, start=BASE << 1, end=(BASE << 1) + 4096, checksum=0, entries=())},
         "the vDSO lies outside the address space"),
        ({"vdso": Vdso(data=BASE << 0, start=BASE + 0x10000, end=BASE + 0x11000, checksum=0, entries=())},
         "a mapping overlaps the vDSO"),
        ({"vdso": Vdso(data=BASE + 65536, start=BASE + 65536, end=BASE + 69632, checksum=0, entries=((4090, 1),))},
         "a function lies outside the vDSO"),
        ({"readings": [Reading(file=1, offset=0, bytes=1)]}, "it reads ahead a file that is not in the table"),
        ({"readings": [Reading(file=NO_FILE, offset=0, bytes=1)]}, "it reads ahead a file that is not in the table"),
        ({"readings": [Reading(file=0, offset=1, bytes=1)]}, "it reads ahead outside a file, or too much"),
        ({"readings": [Reading(file=0, offset=0, bytes=0)]}, "it reads ahead outside a file, or too much"),
        ({"readings": [Reading(file=0, offset=0, bytes=1 << 31)]}, "it reads ahead outside a file, or too much"),
        ({"readings": [Reading(file=0, offset=1 << 63, bytes=1)]}, "it reads ahead outside a file, or too much"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(library: Library, changes: dict[str, object], message: str) -> None:
    assert library.check(sound(**changes).to_bytes()) == message


def summed(content: bytes) -> bytes:
    """The bytes with a checksum that fits, so that the checks behind it are reached."""
    return content[:24] + struct.pack("<Q", table.checksum(content[32:])) + content[32:]


@settings(max_examples=3000, deadline=None)
@given(data=st.data())
def test_no_mutation_crashes_the_parser(library: Library, data: st.DataObject) -> None:
    content = bytearray(sound().to_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(32, len(content) - 8))
        value = data.draw(st.sampled_from([0, 1, 7, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 63, (1 << 64) - 1, len(content)])
                          | st.integers(0, (1 << 64) - 1))  # fmt: skip
        size = data.draw(st.sampled_from([1, 4, 8]))
        content[at : at + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")
    if data.draw(st.booleans()):
        content[:] = content[: data.draw(st.integers(0, len(content)))]
        if len(content) >= 32:
            content[16:24] = len(content).to_bytes(8, "little")
    checked = library.check(summed(bytes(content)) if len(content) > 32 else bytes(content))
    assert checked is None or checked


def test_no_mutation_makes_it_read_outside_the_table(tmp_path: Path, native: Path) -> None:
    """Every field with every special value, and random ones, under the sanitizers for addresses and undefined use."""
    fuzzer, seed = tmp_path / "fuzz", tmp_path / "table"
    seed.write_bytes(sound().to_bytes())
    compiler = next(filter(shutil.which, ("gcc", "clang", "cc")))
    command = [compiler, "-std=c11", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all",
               f"-I{SOURCES}", "-o", str(fuzzer), str(Path(__file__).with_name("fuzz_table.c")),
               str(SOURCES / "table.c")]  # fmt: skip
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode and "cannot find" in built.stderr:
        pytest.skip("the compiler has no sanitizers here")
    assert built.returncode == 0, built.stderr
    done = subprocess.run([fuzzer, seed, "60000"], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    accepted, refused = (int(part.split()[0]) for part in done.stdout.split(","))
    assert accepted > 1000 < refused


def test_a_table_is_read_back_as_it_was_written() -> None:
    assert Table.from_bytes(sound().to_bytes()).to_bytes() == sound().to_bytes()


@settings(max_examples=1000, deadline=None)
@given(data=st.data())
def test_no_mutation_crashes_the_reader_in_python(data: st.DataObject) -> None:
    content = bytearray(sound().to_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(32, len(content) - 4))
        value = data.draw(st.sampled_from([0, 1, 0x7FFFFFFF, 0xFFFFFFFF, len(content)]) | st.integers(0, 0xFFFFFFFF))
        content[at : at + 4] = value.to_bytes(4, "little")
    try:
        Table.from_bytes(summed(bytes(content))).to_bytes()
    except ValueError as error:
        assert str(error) in ("it is truncated", "its text does not end", "a section lies outside it")


def test_neighbours_that_continue_each_other_become_one() -> None:
    parts = [Mapping(start=BASE + n * 4096, bytes=4096, protection=3, file=0, offset=n * 4096) for n in range(3)]
    zeros = [Mapping(start=BASE + n * 4096, bytes=4096, protection=3) for n in (3, 4)]
    apart = Mapping(start=BASE + 5 * 4096, bytes=4096, protection=3, kind=MAPPED, file=0, offset=4096)
    assert table.joined([*parts, *zeros, apart]) == [
        Mapping(start=BASE, bytes=3 * 4096, protection=3, file=0),
        Mapping(start=BASE + 3 * 4096, bytes=2 * 4096, protection=3),
        apart,
    ]
