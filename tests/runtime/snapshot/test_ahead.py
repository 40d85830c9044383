"""What a rehearsal sees is listed in the table, and the restorer reads it ahead."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from helpers.snapshots import Program
from prebake.errors import SnapshotError
from prebake.snapshot.ahead import GAP, add_list, runs
from prebake.snapshot.folder import IMAGE, findings, read_table
from prebake.snapshot.table import MEMORY_IMG, PAGE, Reading
from prebake.snapshot.use import ENV_REHEARSAL, Used, forget, resident

MUCH = """
    import os, sys
    from prebake import snapshot
    kept = bytearray(b"kept" * (16 << 18))  # 16 MB
    snapshot.here()
    if sys.argv[1:] == ["touch"]:
        assert kept[5 << 20 : (5 << 20) + 4] == b"kept"
    os.write(1, b"restored")
    os._exit(0)  # the end of the interpreter touches everything
"""


@pytest.fixture
def program(program: Program) -> Program:
    """A program with 16 MB of its own in a snapshot, that it does not need after the restore."""
    program.write(MUCH)
    done = program.dump()
    assert done.returncode == 0, done.stderr
    return program


def forgotten(image: Path) -> None:
    """Drop the file from the page cache, or skip the test where that can't be done."""
    try:
        forget(image)
    except SnapshotError as error:
        pytest.skip(str(error))


def test_runs_join_pages_with_a_short_gap() -> None:
    assert [*runs([])] == []
    assert [*runs({3, 1, 2})] == [(1, 4)]
    assert [*runs([1, 2 + GAP, 4 + 2 * GAP])] == [(1, 3 + GAP), (4 + 2 * GAP, 5 + 2 * GAP)]


def test_a_rehearsal_sees_the_touched_pages_alone(program: Program) -> None:
    image = program.snapshot / IMAGE
    forgotten(image)
    assert program.restore("untouched", environment={ENV_REHEARSAL: "1"}).stdout == "restored"
    first = resident(image)
    assert 0 < len(first) * PAGE < 8 << 20 < 16 << 20 < image.stat().st_size
    forgotten(image)
    assert program.restore("touch", environment={ENV_REHEARSAL: "1"}).stdout == "restored"
    block = (program.snapshot / IMAGE).read_bytes().index(b"kept" * 1024)
    assert block // PAGE + (5 << 20) // PAGE in {page + shift for page in resident(image) for shift in (-1, 0, 1)}


def test_the_list_is_in_the_table_and_the_rest_of_the_snapshot_stays(program: Program) -> None:
    before = (program.snapshot / IMAGE).read_bytes()
    table = read_table(program.snapshot)
    library = next(index for index, file in enumerate(table.files) if "/libc.so" in file.path)
    path = table.files[library].path
    ready = Used(image=frozenset({1, 2}), files={path: frozenset({7})})
    answered = Used(image=frozenset({1, 2, 100}), files={path: frozenset({7, 90})})
    listed = add_list(program.snapshot, ready, answered)
    assert (program.snapshot / IMAGE).read_bytes() == before
    assert findings(program.snapshot) == []
    readings = read_table(program.snapshot).readings
    assert readings[0] == Reading(file=MEMORY_IMG, offset=PAGE, bytes=2 * PAGE)
    assert Reading(file=library, offset=0, bytes=8 * PAGE) in readings  # with the first page, which is compared
    assert readings[-2:] == [Reading(file=MEMORY_IMG, offset=100 * PAGE, bytes=PAGE),
                             Reading(file=library, offset=90 * PAGE, bytes=PAGE)]  # fmt: skip
    assert sum(reading.bytes for reading in readings) == listed.ready + listed.answered
    assert str(listed) == (
        f"snapshot: reads ahead {listed.ready / 1e6:.0f} MB for the start and 0 MB for the first answer, in "
        f"{len(readings)} ranges"
    )
    assert program.restore("touch").stdout == "restored"


def test_the_restorer_reads_the_listed_pages_ahead(program: Program) -> None:
    image = program.snapshot / IMAGE
    block = image.read_bytes().index(b"kept" * 1024) // PAGE + 1
    wanted = frozenset(range(block + 256, block + 768))  # nothing touches them
    add_list(program.snapshot, Used(image=wanted), Used(image=wanted))
    forgotten(image)
    assert program.restore("untouched").stdout == "restored"
    assert wanted <= resident(image)


def test_in_a_rehearsal_nothing_is_read_ahead(program: Program) -> None:
    image = program.snapshot / IMAGE
    block = image.read_bytes().index(b"kept" * 1024) // PAGE + 1
    wanted = frozenset(range(block + 256, block + 768))
    add_list(program.snapshot, Used(image=wanted), Used(image=wanted))
    forgotten(image)
    assert program.restore("untouched", environment={ENV_REHEARSAL: "1"}).stdout == "restored"
    assert not wanted & resident(image)


def test_a_file_that_stays_in_memory_tells_nothing(tmp_path: Path) -> None:
    memory = os.memfd_create("image")
    try:
        os.write(memory, bytes(3 * PAGE))
        image = Path(f"/proc/self/fd/{memory}")
        with pytest.raises(SnapshotError) as raised:
            forget(image)
        assert str(raised.value) == f"{image}: 3 pages stay in the page cache: which are used can't be seen here"
    finally:
        os.close(memory)


def test_the_whole_command(program: Program) -> None:
    forgotten(program.snapshot / IMAGE)
    done = program.rehearse("touch", options=("--until-exit",))
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("snapshot: reads ahead ")
    assert read_table(program.snapshot).readings
    assert program.restore("touch").stdout == "restored"


def test_a_snapshot_that_is_refused_is_not_rehearsed(program: Program) -> None:
    program.environment["PREBAKE_TIERS"] = "read"
    done = program.rehearse("touch", options=("--until-exit",))
    assert done.returncode == 1
    assert done.stderr == (
        f"prebake: error: {program.snapshot}: the snapshot is refused here: PREBAKE_TIERS is set, which it was not for "
        "the snapshot\n"
    )
    assert not read_table(program.snapshot).readings
    shutil.rmtree(program.snapshot)
    done = program.rehearse("touch")
    assert done.returncode == 2
    assert done.stderr == (
        f"prebake: error: {program.snapshot}: holds no snapshot (run: prebake snapshot --output {program.snapshot} -- "
        "COMMAND)\n"
    )
