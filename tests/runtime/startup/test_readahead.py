"""A start that reads ahead: by a process of its own, a warm one not at all, and nothing can go wrong."""

from __future__ import annotations

import importlib
import itertools
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.page_cache import cached, forget
from helpers.runtime_fakes import python_says
from prebake.startup import readahead
from prebake.startup.readahead import HEADER, PIECE, begin, text_of
from prebake.telemetry import timeline


@pytest.fixture
def reaped(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[str]]]:
    """The command lines of the readers that were started; all have ended when the test has."""
    commands: list[list[str]] = []
    plain = os.posix_spawn

    def spy(path: str, arguments: list[str], environment: dict[str, str], **options: Any) -> int:
        commands.append(arguments)
        return plain(path, arguments, environment, **options)

    monkeypatch.setattr(os, "posix_spawn", spy)
    monkeypatch.setattr(sys, "meta_path", sys.meta_path.copy())
    yield commands
    wait()


def wait() -> None:
    for thread in threading.enumerate():
        if thread.name == "prebake-readahead":
            thread.join(60)


def listed(folder: Path, *entries: readahead.Entry) -> Path:
    path = folder / "list"
    path.write_text(text_of([(list(entries), None)]))
    return path


def test_folders_and_empty_lines_say_nothing_of_whether_a_start_is_warm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reaped: list[list[str]]
) -> None:
    (tmp_path / "list").write_text(f"{HEADER}\n{tmp_path}/\n\n{tmp_path}/gone/\n")
    monkeypatch.setenv(readahead.ENV, str(tmp_path / "list"))
    begin()
    assert reaped == []


def test_a_cold_start_has_it_read_by_a_process_that_ends_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reaped: list[list[str]]
) -> None:
    file = tmp_path / "file"
    file.write_bytes(os.urandom(4 * PIECE))
    forget(file)
    monkeypatch.setattr(timeline, "process", timeline.Timeline())
    monkeypatch.setattr(timeline, "mark", timeline.process.mark)
    monkeypatch.setenv(readahead.ENV, str(listed(tmp_path, (str(file), ()))))
    begin()
    wait()
    assert [command[1:] for command in reaped] == [["-ISEB", readahead.__file__, str(tmp_path / "list")]]
    assert cached(file) == 1.0
    assert list(timeline.process.marks) == ["read ahead"]


def test_a_warm_start_begins_no_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reaped: list[list[str]]
) -> None:
    files = []
    for number in range(200):
        files.append(tmp_path / str(number))
        files[-1].write_bytes(b"x")
    entries = [(str(file), ()) for file in files]
    monkeypatch.setenv(readahead.ENV, str(listed(tmp_path, *entries, ("/nowhere/at-all", ()))))
    begin()
    assert reaped == []


def test_an_import_waits_until_what_it_needs_is_read_and_others_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reaped: list[list[str]]
) -> None:
    """The test holds back what the reader tells."""
    file = tmp_path / "file"
    file.write_bytes(os.urandom(PIECE))
    forget(file)
    text = text_of([([(str(file), ())], "heavy_for_test"), ([], None)])
    (tmp_path / "list").write_text(text)
    for name in ("heavy_for_test", "light_for_test"):
        (tmp_path / f"{name}.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(readahead.ENV, str(tmp_path / "list"))
    go_on, plain = threading.Event(), os.read

    def held(descriptor: int, count: int) -> bytes:
        go_on.wait(60)
        return plain(descriptor, count)

    monkeypatch.setattr(os, "read", held)
    begin()
    importlib.import_module("light_for_test")
    heavy = threading.Thread(target=importlib.import_module, args=("heavy_for_test",))
    heavy.start()
    heavy.join(0.3)
    assert heavy.is_alive()
    assert "heavy_for_test" not in sys.modules
    go_on.set()
    heavy.join(60)
    assert "heavy_for_test" in sys.modules


def test_an_import_waits_for_no_reader_that_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reaped: list[list[str]]
) -> None:
    file = tmp_path / "file"
    file.write_bytes(os.urandom(PIECE))
    forget(file)
    (tmp_path / "list").write_text(text_of([([(str(file), ())], "one"), ([], "another"), ([], None)]))
    monkeypatch.setenv(readahead.ENV, str(tmp_path / "list"))
    monkeypatch.setattr(readahead, "__file__", str(tmp_path / "absent.py"))
    monkeypatch.setattr(readahead, "LONGEST", 3600.0)
    begin()
    wait()
    for name in ("one", "another"):
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(name)


def test_a_forked_child_waits_for_nobody(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(os.urandom(PIECE))
    forget(file)
    (tmp_path / "list").write_text(text_of([([(str(file), ())], "colorsys"), ([], None)]))
    said = python_says(
        "import os, threading\n"
        "from prebake.startup import readahead\n"
        "readahead.LONGEST, plain, go_on = 3600.0, os.read, threading.Event()\n"
        "os.read = lambda *arguments: go_on.wait(60) and plain(*arguments)\n"
        "readahead.begin()\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    import colorsys; os._exit(0)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        "go_on.set()\n"
        "import colorsys; print(colorsys.__name__)",
        PREBAKE_READAHEAD=str(tmp_path / "list"),
    )
    assert said.splitlines() == ["0", "colorsys"]


def test_a_library_of_which_a_part_is_gone_makes_a_start_cold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reaped: list[list[str]]
) -> None:
    library, others = tmp_path / "library", tmp_path / "other"
    library.write_bytes(bytes(16 * PIECE))
    others.write_bytes(b"x")
    gone = 12 * PIECE
    plain = os.preadv

    def forgetful(descriptor: int, buffers: list[Any], offset: int, flags: int = 0) -> int:
        if flags and offset == gone:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return plain(descriptor, buffers, offset, flags)

    monkeypatch.setattr(os, "preadv", forgetful)
    entries: list[readahead.Entry] = [(str(others), ())] * 500
    entries[333] = (str(library), tuple((number * PIECE, 4096) for number in range(16)))
    monkeypatch.setenv(readahead.ENV, str(listed(tmp_path, *entries)))
    begin()
    assert len(reaped) == 1


AGAIN, FROM_MEMORY, FROM_DISK, ANOTHERS_TURN = 2e-6, 5e-6, 53e-6, 4e-3


@pytest.mark.parametrize("slower", [0.2, 1, 20])
@pytest.mark.parametrize(
    ("took", "readers"),
    [
        ([FROM_MEMORY], 0),
        ([FROM_DISK], 1),
        ([1e-3], 1),
        ([*[FROM_MEMORY] * 5, ANOTHERS_TURN], 0),  # a busy machine is not a cold start
        ([FROM_MEMORY, FROM_DISK], 1),  # half of it is not there
    ],
)
def test_where_the_system_cannot_tell_the_time_that_reads_take_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reaped: list[list[str]], took: list[float], readers: int,
    slower: float,
) -> None:  # fmt: skip
    """As on overlayfs, in which the files of containers are. How fast the machine is does not matter."""
    plain = os.preadv

    def refuse(descriptor: int, buffers: list[Any], offset: int, flags: int = 0) -> int:
        if flags:
            raise OSError(95, "Operation not supported")
        return plain(descriptor, buffers, offset)

    # it looks at the clock before and after, the first time and again
    looks = ((0.0, first * slower, 0.0, AGAIN * slower) for first in itertools.cycle(took))
    ticks = itertools.accumulate(itertools.chain.from_iterable(looks))
    files = [tmp_path / str(number) for number in range(40)]
    for file in files:
        file.write_bytes(b"x")
    path = listed(tmp_path, *((str(file), ()) for file in files))
    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", refuse)
        patch.setattr(time, "perf_counter", lambda: next(ticks))
        patch.setenv(readahead.ENV, str(path))
        begin()
    assert len(reaped) == readers


@pytest.mark.parametrize(
    ("value", "content", "level"),
    [
        (None, None, None),
        ("", None, None),
        ("absent", None, logging.DEBUG),
        ("list", "", logging.WARNING),
        ("list", "something else\n", logging.WARNING),
        ("list", f"{HEADER}\n/x\t1+\n", logging.WARNING),
    ],
)
def test_no_list_or_a_broken_one_starts_nothing_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, reaped: list[list[str]],
    value: str | None, content: str | None, level: int | None,
) -> None:  # fmt: skip
    monkeypatch.delenv(readahead.ENV, raising=False)
    if value is not None:
        monkeypatch.setenv(readahead.ENV, str(tmp_path / value) if value else "")
    if content is not None:
        (tmp_path / "list").write_text(content)
    with caplog.at_level(logging.DEBUG, "prebake.startup.readahead"):
        begin()
    assert [record.levelno for record in caplog.records] == ([] if level is None else [level])
    assert reaped == []


def test_where_no_process_can_be_started_the_start_reads_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "file"
    file.write_bytes(os.urandom(PIECE))
    forget(file)

    def refuse(*_: object, **options: object) -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "posix_spawn", refuse)
    path = listed(tmp_path, (str(file), ()))
    monkeypatch.setenv(readahead.ENV, str(path))
    begin()
    assert caplog.messages == [f"{path}: nothing is read ahead: [Errno 11] Resource temporarily unavailable"]


def test_the_reader_imports_next_to_nothing(tmp_path: Path) -> None:
    """It competes with the start for processors: what it imports is read and run before its first byte."""
    script = tmp_path / "reader.py"
    source = Path(readahead.__file__).read_text()
    script.write_text(source + "    print('\\n'.join(sys.modules))\n")
    done = subprocess.run(
        [sys.executable, "-ISEB", script, listed(tmp_path)], capture_output=True, text=True, check=True
    )
    assert not {"pathlib", "logging", "subprocess", "json", "re", "typing", "site"} & set(done.stdout.split())
