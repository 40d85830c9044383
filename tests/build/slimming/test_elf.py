"""Libraries lose what no process maps, and nothing else."""

from __future__ import annotations

import importlib.util
import shutil
import site
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.installed import library
from prebake_build.slimming.elf import apply_cut, find_cut

TEXT = (".text", b"code" * 100, True)
SYMBOLS = (".symtab", b"s" * 9000, False)
STRINGS = (".strtab", b"n" * 5000, False)


def write(folder: Path, content: bytes) -> Path:
    path = folder / "lib.so"
    path.write_bytes(content)
    path.chmod(0o755)
    return path


def sections(content: bytes) -> list[tuple[str, int, int]]:
    """Name, offset and size of every section."""
    at, count, names_at = struct.unpack_from("<Q", content, 40)[0], *struct.unpack_from("<HH", content, 60)
    entries = [struct.unpack_from("<IIQQQQIIQQ", content, at + 64 * number) for number in range(count)]
    names = content[entries[names_at][4] :]
    return [(names[entry[0] : names.index(b"\0", entry[0])].decode(), entry[4], entry[5]) for entry in entries]


def test_symbols_go_and_every_mapped_byte_stays(tmp_path: Path) -> None:
    before = library([TEXT, SYMBOLS, STRINGS, (".comment", b"GCC", False)])
    path = write(tmp_path, before)
    cut = find_cut(path)
    assert cut is not None
    apply_cut(path, cut)
    after = path.read_bytes()
    end = 64 + 56 + 400
    assert (after[64:end], len(before) - len(after)) == (before[64:end], cut.saved)
    assert 14_000 < cut.saved < 15_000
    assert sections(after) == [("", 0, 0), (".text", 120, 400), (".shstrtab", end, 17)]
    assert path.stat().st_mode & 0o777 == 0o755
    assert [found.name for found in tmp_path.iterdir()] == ["lib.so"]


def test_fields_of_the_header_but_those_of_the_section_table_stay(tmp_path: Path) -> None:
    before = library([TEXT, SYMBOLS])
    path = write(tmp_path, before)
    apply_cut(path, find_cut(path) or pytest.fail("nothing to cut"))
    after = path.read_bytes()
    assert (after[:40], after[48:60]) == (before[:40], before[48:60])


def test_a_section_that_stays_keeps_its_number(tmp_path: Path) -> None:
    """Dynamic symbols name sections by number."""
    path = write(tmp_path, library([TEXT, (".comment", b"", False), (".data", b"d" * 8, True), SYMBOLS]))
    apply_cut(path, find_cut(path) or pytest.fail("nothing to cut"))
    assert [name for name, _, _ in sections(path.read_bytes())] == ["", ".text", "", ".data", ".shstrtab"]


def test_a_second_cut_finds_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, library([TEXT, SYMBOLS]))
    apply_cut(path, find_cut(path) or pytest.fail("nothing to cut"))
    assert find_cut(path) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x7fELF\x02\x01\x01",
        b"#!/bin/sh\n" + bytes(9000),
        library([TEXT, SYMBOLS], kind=2),  # a program, which may keep a payload behind its segments
        library([TEXT, SYMBOLS, ("pydata", b"p" * 9000, False)]),
        library([TEXT, SYMBOLS], appended=b"a" * 9000),
        library([TEXT, (".symtab", b"s" * 100, False)]),
        library([TEXT, SYMBOLS])[:-64],
        b"\x7fELF\x01\x01\x01" + library([TEXT, SYMBOLS])[7:],
    ],
    ids=["empty", "short", "script", "program", "payload", "appended", "small", "cut off", "32 bit"],
)
def test_other_files_are_left_alone(tmp_path: Path, content: bytes) -> None:
    assert find_cut(write(tmp_path, content)) is None


@given(data=st.data())
def test_damaged_headers_are_left_alone_or_keep_every_mapped_byte(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(library([TEXT, SYMBOLS]))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.sampled_from([*range(64 + 56), *range(len(content) - 256, len(content))]))] = data.draw(
            st.integers(0, 255)
        )
    path = write(tmp_path_factory.mktemp("damaged"), bytes(content))
    cut = find_cut(path)
    if cut is not None:
        apply_cut(path, cut)
        assert path.read_bytes()[64 : cut.end] == bytes(content)[64 : cut.end]


def real_library() -> Path:
    """An extension module of this environment that has symbols."""
    folders = [Path(folder) for folder in site.getsitepackages()]
    for name in ("yaml/_yaml", "regex/_regex", "pyclipper/_pyclipper", "safetensors/_safetensors_rust"):
        for folder in folders:
            for path in folder.glob(f"{name}*.so"):
                if find_cut(path) is not None:
                    return path
    pytest.skip("no extension module with symbols is installed here")


def test_a_real_extension_module_still_loads(tmp_path: Path) -> None:
    path = Path(shutil.copy2(real_library(), tmp_path))
    before = path.read_bytes()
    apply_cut(path, find_cut(path) or pytest.fail("nothing to cut"))
    assert path.stat().st_size < len(before)
    module = path.name.partition(".")[0]
    assert importlib.util.find_spec("yaml") is not None
    script = (
        "import sys, importlib.util as u\n"
        "spec = u.spec_from_file_location(sys.argv[1], sys.argv[2])\n"
        "module = u.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "print(open('/proc/self/maps').read().count(sys.argv[2]) > 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, module, str(path)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
