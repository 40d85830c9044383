"""Where a snapshot does not fit, the program starts the ordinary way and knows why."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.snapshots import Program

TELLING = """
    import os
    from prebake import snapshot
    from prebake.errors import SnapshotError
    from prebake.telemetry import restored
    def fits():
        if os.environ.get("UNFIT"):
            raise SnapshotError("the state is another one")
    snapshot.after_restore(fits)
    snapshot.here(watched=[__import__("pathlib").Path(__file__).with_name("vocabulary.txt")])
    told = restored.document()
    print(told["tier"], told["reason"])
"""


@pytest.fixture
def telling(program: Program) -> Program:
    """A program with a snapshot, that prints how it was started."""
    program.write(TELLING)
    (program.folder / "vocabulary.txt").write_text("some words", encoding="utf-8")
    done = program.dump()
    assert done.returncode == 0, done.stderr
    return program


def refusal(program: Program, **environment: str) -> str:
    done = program.restore(environment=environment)
    assert done.returncode == 0
    tier, _, reason = done.stdout.strip().partition(" ")
    assert tier == "ordinary"
    assert done.stderr == f"prebake: the snapshot is not used: {reason}\n"
    return reason


def test_it_fits_otherwise(telling: Program) -> None:
    assert telling.restore().stdout == "snapshot None\n"


def test_a_watched_file_that_changed(telling: Program) -> None:
    vocabulary = telling.folder / "vocabulary.txt"
    vocabulary.write_text("other words, and more", encoding="utf-8")
    assert refusal(telling) == f"{vocabulary} has another size"
    vocabulary.write_text("other word", encoding="utf-8")
    assert refusal(telling) == f"{vocabulary} has another modification time"
    vocabulary.unlink()
    assert refusal(telling) == f"{vocabulary} is missing"


def test_a_mapped_file_with_the_same_size_and_time(telling: Program, tmp_path: Path) -> None:
    """Images set all times alike, so the first page is compared too."""
    library = tmp_path / "libprebake-pause.so"
    original = telling.native / library.name
    content = bytearray(original.read_bytes())
    library.write_bytes(content)
    os.utime(library, ns=(0, 0))
    telling.environment["PREBAKE_SNAPSHOT_PROGRAMS"] = str(tmp_path)
    assert telling.dump().returncode == 0
    content[100] ^= 1
    library.write_bytes(content)
    os.utime(library, ns=(0, 0))
    assert refusal(telling) == f"{library} has another content"


def test_variables_that_the_state_depends_on(telling: Program) -> None:
    assert refusal(telling, PREBAKE_TIERS="read") == "PREBAKE_TIERS is set, which it was not for the snapshot"
    telling.environment["PREBAKE_TIERS"] = "read"
    telling.environment["MY_FLAG"] = "1"
    assert telling.dump(options=("--variable", "MY_FLAG")).returncode == 0
    assert telling.restore().stdout == "snapshot None\n"
    assert refusal(telling, PREBAKE_TIERS="mapped") == "PREBAKE_TIERS has another value than for the snapshot"
    assert refusal(telling, MY_FLAG="2") == "MY_FLAG has another value than for the snapshot"
    del telling.environment["MY_FLAG"]
    assert refusal(telling) == "MY_FLAG is not set, as it was for the snapshot"


def test_the_program_itself_refuses(telling: Program) -> None:
    assert refusal(telling, UNFIT="1") == "the state is another one"


def test_another_command(telling: Program) -> None:
    path = telling.folder / "program.py"
    done = telling.restore(command=[sys.executable, "-X", "utf8", str(path)])
    given, dumped = f"{sys.executable} -X utf8 {path}", f"{sys.executable} -X faulthandler {path}"
    assert done.stdout == f"ordinary the command is '{given}', and the snapshot is of '{dumped}'\n"


def test_turned_off(telling: Program) -> None:
    done = telling.restore(environment={"PREBAKE_SNAPSHOT": "0"}, command=["/bin/echo", "started"])
    assert (done.returncode, done.stdout, done.stderr) == (0, "started\n", "")


@pytest.mark.parametrize("name", ["table", "memory.img"])
def test_missing_files(telling: Program, name: str) -> None:
    (telling.snapshot / name).unlink()
    assert refusal(telling) == f"there is no {telling.snapshot}/{name}"


def test_a_truncated_memory_image(telling: Program) -> None:
    image = telling.snapshot / "memory.img"
    os.truncate(image, image.stat().st_size - 4096)
    assert refusal(telling) == f"{image} has another size than its table says"


def test_a_memory_image_of_another_dump(telling: Program) -> None:
    image = telling.snapshot / "memory.img"
    content = bytearray(image.read_bytes())
    content[:16] = bytes(16)
    image.write_bytes(content)
    assert refusal(telling) == f"{image} belongs to another table"


@pytest.mark.parametrize("size", [0, 3, 8, 11, 40, 300])
def test_a_truncated_table(telling: Program, size: int) -> None:
    table = telling.snapshot / "table"
    os.truncate(table, size)
    expected = (
        "its size is not that of a table"
        if size == 0
        else "it is not a snapshot's table"
        if size < 8
        else "it is truncated"
    )
    assert refusal(telling) == f"{table}: {expected}"


def test_a_damaged_table(telling: Program) -> None:
    table = telling.snapshot / "table"
    content = bytearray(table.read_bytes())
    content[1000] ^= 1
    table.write_bytes(content)
    assert refusal(telling) == f"{table}: its checksum differs: it is damaged"


def test_a_table_of_another_version(telling: Program) -> None:
    table = telling.snapshot / "table"
    content = bytearray(table.read_bytes())
    content[8] += 1
    table.write_bytes(content)
    assert refusal(telling) == f"{table}: its format has another version"


def test_too_large_arguments_and_environment(telling: Program) -> None:
    large = {f"LARGE_{n}": "x" * 100_000 for n in range(16)}
    assert refusal(telling, **large) == "the arguments and the environment are too large"


def test_check_tells_whether_it_fits(telling: Program) -> None:
    command = [telling.restorer[0], "--check", telling.restorer[1]]
    assert subprocess.run(command, check=False).returncode == 0
    (telling.snapshot / "memory.img").unlink()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, f"prebake: there is no {telling.snapshot}/memory.img\n")


def test_wrong_use_of_the_restorer(native: Path) -> None:
    done = subprocess.run([native / "prebake-restore", "x"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (125, "usage: prebake-restore SNAPSHOT COMMAND [ARGUMENT…]\n")
    done = subprocess.run([native / "prebake-restore", "/none", "/none"], capture_output=True, text=True, check=False)
    assert done.returncode == 127
    assert (
        done.stderr == "prebake: the snapshot is not used: there is no /none/table\nprebake: /none: can't be executed\n"
    )


# ---- at the dump -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("holding", "message"),
    [
        ("import socket; kept = socket.socket()", "files, pipes or sockets are open: 3 (socket:["),
        ("import threading; threading.Thread(target=threading.Event().wait, name='helper', daemon=True).start()",
         "other threads are running: helper; end them"),
        ("import subprocess; kept = subprocess.Popen(['sleep', '20'])", "a child process is running; wait for it"),
        ("import mmap; kept = mmap.mmap(-1, 4096)", "a mapping of a file that is gone: /dev/zero"),
    ],
)  # fmt: skip
def test_what_a_snapshot_cannot_hold(program: Program, holding: str, message: str) -> None:
    program.write(f"""
        from prebake import snapshot
        from prebake.snapshot import quiet
        quiet.PATIENCE = 0.1
        {holding}
        snapshot.here()
    """)
    done = program.dump()
    assert done.returncode == 1
    assert f"SnapshotError: {message}" in done.stderr
    assert not [*program.snapshot.iterdir()]


def test_a_dump_needs_an_absolute_command(program: Program) -> None:
    program.folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "prebake", "snapshot", "--output", str(program.snapshot), "--", "python3"],
        env=program.variables(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith(
        "prebake: error: snapshot: python3: expected an absolute path, as for the container's"
    )
