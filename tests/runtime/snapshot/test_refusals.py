"""Where a snapshot does not fit, the program starts the ordinary way and knows why."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
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


def test_a_module_of_the_program_that_changed(telling: Program) -> None:
    program = telling.folder / "program.py"
    program.write_text(program.read_text(encoding="utf-8") + "# changed\n", encoding="utf-8")
    assert refusal(telling) == f"{program} has another size"


def test_another_version_of_an_imported_package(telling: Program) -> None:
    packages = telling.folder / "site-packages"
    (packages / "words").mkdir(parents=True)
    (packages / "words" / "__init__.py").write_text("", encoding="utf-8")
    record = packages / "words-1.0.dist-info" / "RECORD"
    record.parent.mkdir()
    record.write_text("words/__init__.py,,0\n", encoding="utf-8")
    telling.environment["PYTHONPATH"] = f"{telling.variables()['PYTHONPATH']}:{packages}"
    telling.write(f"import words\n{textwrap.dedent(TELLING)}")
    assert telling.dump().returncode == 0
    assert telling.restore().stdout == "snapshot None\n"
    (packages / "words" / "__init__.py").write_text("edited = 1", encoding="utf-8")
    assert telling.restore().stdout == "snapshot None\n"
    record.parent.rename(packages / "words-1.1.dist-info")
    assert refusal(telling) == f"{record} is missing"


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


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("no-such-program", "command not found: install what brings it into this environment, or give its path"),
        ("/no/such/program", "command not found: there is no such file"),
        ("/etc", "cannot be executed: it is a folder"),
        ("./program.py", "cannot be executed: the file has no permission for it: chmod +x ./program.py, or python "
         "./program.py"),
        ("", "the command is an empty word"),
    ],
)  # fmt: skip
def test_a_command_that_cannot_be_started(program: Program, command: str, reason: str) -> None:
    program.write("")
    done = _snapshot(program, command, "x", cwd=program.folder)
    named = command or '""'
    assert (done.returncode, done.stderr) == (2, f"prebake: error: snapshot: {named}: {reason}\n")
    assert not program.snapshot.exists() or not [*program.snapshot.iterdir()]


NEVER = ("the service must call prebake.snapshot.here() once everything is loaded, and before it opens its port; "
         "uvicorn with one process needs no call")  # fmt: skip


def test_a_command_that_ends_without_a_snapshot_fails(program: Program) -> None:
    done = _snapshot(program, "/bin/true")
    assert (done.returncode, done.stderr) == (
        1,
        f"prebake: error: snapshot: /bin/true has ended without one: {NEVER}\n",
    )
    assert _snapshot(program, "/bin/false").returncode == 1


def test_a_command_that_goes_on_without_a_snapshot_is_ended(program: Program) -> None:
    done = _snapshot(program, "/bin/sh", "-c", "sleep 1000 & echo $!; wait", seconds="0.5")
    assert done.returncode == 1
    command = "/bin/sh -c sleep 1000 & echo $!; wait"
    assert done.stderr == f"prebake: error: snapshot: {command} runs, but has written none in 0.5 s: {NEVER}\n"
    assert _is_gone(int(done.stdout))


def test_a_child_of_the_command_is_not_dumped(program: Program) -> None:
    program.write("from prebake import snapshot\nsnapshot.here()\n")
    done = _snapshot(program, "/bin/sh", "-c", f"{' '.join(program.command())}; exit 3")
    assert done.returncode == 3
    assert (
        "is a child of the command that `prebake snapshot` started: a snapshot holds that process alone" in done.stderr
    )


def _snapshot(
    program: Program, *command: str, seconds: str = "60", cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "prebake", "snapshot", "--output", str(program.snapshot), "--seconds", seconds, "--"]
    return subprocess.run(
        [*words, *command], env=program.variables(), capture_output=True, text=True, check=False, cwd=cwd
    )


def _is_gone(pid: int) -> bool:
    """Whether the process has ended, or is about to: it was killed."""
    for _ in range(1000):
        try:
            if Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.01)
    return False
