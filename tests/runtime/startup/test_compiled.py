"""Functions that numba compiled in an image's build: a start that uses them compiles nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.numba_images import MODULE, TOTAL, NumbaImage
from prebake.errors import ConfigError
from prebake.startup.compiled import Entry, read_file, read_list

pytest.importorskip("numba")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> NumbaImage:
    image = NumbaImage(tmp_path_factory.mktemp("image"))
    done = image.prepare()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{image.compiled}: 2 of 2 entries of numba.txt are compiled\n"
    return image


@pytest.fixture
def image(built: NumbaImage) -> Iterator[NumbaImage]:
    """What was built, which no start changes."""
    before = built.files()
    yield built
    assert built.files() == before


def said(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_a_start_compiles_nothing(image: NumbaImage, tmp_path: Path) -> None:
    done = image.start(tmp_path / "cache")
    found = said(done)
    assert (found["hits"], found["misses"], found["files"], done.stderr) == (1, 0, [], "")
    assert found["links"] == sorted(Path(name).name for name in image.files() if name != "processor")
    assert len(found["links"]) >= 4  # an index and its code for each of the two functions


def test_without_the_folder_everything_is_compiled(built: NumbaImage, tmp_path: Path) -> None:
    other = NumbaImage(tmp_path)
    found = said(other.start(tmp_path / "cache"))
    assert (found["hits"], found["misses"], found["links"]) == (0, 1, [])
    assert len(found["files"]) >= 4


def test_the_build_gives_the_same_bytes_twice(built: NumbaImage) -> None:
    first = built.files()
    for path in sorted(built.compiled.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert built.prepare().returncode == 0
    assert built.files() == first


def test_what_was_not_compiled_is_compiled_beside_it(image: NumbaImage, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    then = "assert dsp.total(numpy.ones(3, dtype='float32'), 1) == 4.0"
    found = said(image.start(cache, then))
    assert (found["hits"], found["misses"]) == (1, 1)
    assert [name.partition("-")[2].partition(".")[2].partition(".")[2] for name in found["files"]] == ["2.nbc", "nbi"]
    again = said(image.start(cache, then))  # what the first start has written stays
    assert (again["hits"], again["misses"], again["files"]) == (2, 0, found["files"])


def test_a_changed_source_is_compiled_again(built: NumbaImage, tmp_path: Path) -> None:
    source = built.packages / "dsp.py"
    text = source.read_text()
    source.write_text(text + "# changed\n")
    try:
        found = said(built.start(tmp_path / "cache"))
    finally:
        source.write_text(text)
    assert (found["hits"], found["misses"]) == (0, 1)


def test_another_processor_compiles_again_and_says_so_once(image: NumbaImage, tmp_path: Path) -> None:
    variables = {"NUMBA_CPU_NAME": "generic", "PREBAKE_SERVICE": os.urandom(8).hex()}
    then = (
        "import subprocess; child = subprocess.run([sys.executable, '-c', 'import prebake.adopt.process as p; "
        "from prebake.startup import compiled; from pathlib import Path; compiled.FOLDER = Path(%r); "
        "compiled.OWNER = %d; p.prepare(); import numba' % (sys.argv[1], int(sys.argv[2]))]); "
        "assert child.returncode == 0"
    )
    done = image.start(tmp_path / "cache", then, **variables)
    found = said(done)
    built = (image.compiled / "processor").read_text().split()[0]
    assert done.stderr == (
        f"{image.compiled}: numba compiles its functions again: the image was built on another processor ({built}, "
        "this one is generic); NUMBA_CPU_NAME=generic, in the build and here, compiles for both\n"
    )
    assert (found["hits"], found["misses"], found["links"]) == (0, 1, [])


def test_a_generic_processor_serves_all(tmp_path: Path) -> None:
    image = NumbaImage(tmp_path)
    assert image.prepare(NUMBA_CPU_NAME="generic").returncode == 0
    assert (image.compiled / "processor").read_text() == "generic\n"
    found = said(image.start(tmp_path / "cache", NUMBA_CPU_NAME="generic"))
    assert (found["hits"], found["misses"]) == (1, 0)


@pytest.mark.parametrize("spoil", ["file", "folder", "link", "owner"])
def test_what_others_could_have_written_is_not_used(built: NumbaImage, tmp_path: Path, spoil: str) -> None:
    image = NumbaImage(tmp_path)
    for name, content in built.files().items():
        (image.compiled / name).parent.mkdir(parents=True, exist_ok=True)
        (image.compiled / name).write_bytes(content)
    place = image.compiled / "processor"
    owner = os.getuid()
    if spoil == "file":
        place.chmod(0o664)
    elif spoil == "folder":
        place = image.compiled
        place.chmod(0o777)
    elif spoil == "link":
        place.unlink()
        place.symlink_to("/etc/hostname")
    else:
        place, owner = image.compiled, owner + 1
    code = (
        "import sys; from pathlib import Path; from prebake.startup import compiled; import numba; "
        "compiled.FOLDER, compiled.OWNER = Path(sys.argv[1]), int(sys.argv[2]); print(compiled.use(sys.argv[3]))"
    )
    done = image.python(code, str(image.compiled), str(owner), str(tmp_path / "cache"))
    assert done.stdout == (
        f"{place}: the compiled functions of numba are not used: only root may own or change them\n"
    ), done.stderr
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_written_changes_nothing(image: NumbaImage, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    code = (
        "import sys; from pathlib import Path; from prebake.startup import compiled; import numba; "
        "compiled.FOLDER, compiled.OWNER = Path(sys.argv[1]), int(sys.argv[2]); print(compiled.use(sys.argv[3]))"
    )
    done = image.python(code, str(image.compiled), str(os.getuid()), str(tmp_path / "cache"))
    assert (done.stdout, done.returncode) == ("None\n", 0), done.stderr


def test_what_cannot_be_compiled_is_said(tmp_path: Path) -> None:
    image = NumbaImage(tmp_path)
    image.list.write_text(f"nowhere\ndsp:other(int64)\ndsp:total(Array(float32))\ndsp:total(int65)\n{TOTAL}\n")
    done = image.prepare()
    where = image.list
    first, second, third, fourth = done.stderr.splitlines()
    assert first == f"{where}: nowhere: is not compiled: ModuleNotFoundError: No module named 'nowhere'"
    assert second == (
        f"{where}: dsp:other(int64): is not compiled: AttributeError: module 'dsp' has no attribute 'other'"
    )
    assert third.startswith(
        f"{where}: dsp:total(Array(float32)): is not compiled: ValueError: 'Array(float32)' is not a type: "
    )
    assert fourth == (
        f"{where}: dsp:total(int65): is not compiled: ValueError: 'int65' is not a type that can be written down"
    )
    assert (done.returncode, done.stdout) == (0, f"{image.compiled}: 1 of 5 entries of numba.txt are compiled\n")


def test_a_list_is_read(tmp_path: Path) -> None:
    text = f"# comment\n\n  dsp  \n{TOTAL}\npackage.module:Class.method()\n"
    (tmp_path / "numba.txt").write_text(text)
    assert read_file(tmp_path / "numba.txt") == text
    assert read_list(text, "numba.txt") == [
        Entry(module="dsp"),
        Entry(module="dsp", function="total", types="Array(float64, 1, 'C', False, aligned=True), int64"),
        Entry(module="package.module", function="Class.method"),
    ]
    assert [entry.line for entry in read_list(text, "")] == ["dsp", TOTAL, "package.module:Class.method()"]
    assert read_file(tmp_path / "missing.txt") == ""


def test_a_malformed_list_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "numba.txt"
    path.write_text("dsp\ndsp total\n")
    with pytest.raises(ConfigError) as error:
        read_file(path)
    assert str(error.value) == f'{path}:2: "dsp total" is neither a module nor module:function(types)'
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError) as error:
        read_file(path)
    assert str(error.value).startswith(f"{path}: cannot read it: ")


def test_modules_of_the_project_are_compiled_into_a_folder_of_their_own(image: NumbaImage, tmp_path: Path) -> None:
    project = tmp_path / "app"
    project.mkdir()
    (project / "mine.py").write_text("import dsp\nfrom dsp import *\n" + MODULE + "\ndsp.twice(1.0)\n")
    (project / "numba.txt").write_text(f"dsp\n{TOTAL}\n./mine\n./mine:total(int64)\n./mine:{TOTAL[4:]}\n")
    code = (
        "import sys; from pathlib import Path; from prebake.startup import compiled, prepare; "
        "compiled.FOLDER = Path(sys.argv[1]); sys.exit(prepare._main(sys.argv[2:]))"
    )
    folder = tmp_path / "compiled" / "prebake"
    done = image.python(code, str(image.compiled), str(folder), "numba.txt", "--own", cwd=project)
    assert (done.returncode, done.stdout) == (0, f"{folder}/numba: 2 of 3 entries of numba.txt are compiled\n")
    assert done.stderr == (
        "numba.txt: ./mine:total(int64): is not compiled: TypeError: Signature mismatch: 1 argument types given, but "
        "function takes 2 arguments\n"
    )
    found = {path.name.partition("-")[0] for path in folder.glob("numba/*/*")}
    assert {"mine.total", "mine.twice"} <= found  # what the environment has compiled is not repeated
    assert [name for name in found if "dsp" in name] == []
    assert [path for path in folder.rglob("*") if path.is_symlink()] == []
    assert sorted(path.name for path in folder.iterdir()) == ["numba"]  # and no memo


def test_a_malformed_list_ends_the_build(tmp_path: Path) -> None:
    (tmp_path / "numba.txt").write_text("a b\n")
    command = [sys.executable, "-B", "-m", "prebake.startup.prepare", "opt", "numba.txt"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == 'prebake: error: numba.txt:1: "a b" is neither a module nor module:function(types)\n'
    assert sorted(path.name for path in tmp_path.iterdir()) == ["numba.txt"]
