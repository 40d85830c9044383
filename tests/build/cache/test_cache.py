"""The build cache: each checkpoint fetched once, whole or not at all, whoever else fetches or is killed."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers import ROOT
from helpers.fake_sources import FakeSource, FetchingSource
from prebake.errors import ConfigError, IntegrityError, SourceError
from prebake_build.cache.checkpoints import Cache
from prebake_build.cache.store import default_folder
from prebake_build.files import digest
from prebake_build.sources import Resolved


def contents(cache: Cache) -> list[str]:
    """What is in the cache besides lock files."""
    return sorted(path.name for path in cache.checkpoints.iterdir() if path.suffix != ".lock")


# --- one checkpoint ----------------------------------------------------------------------------------------------


def test_a_checkpoint_is_fetched_once_and_then_found(source: FakeSource) -> None:
    with Cache() as cache:
        first = cache.checkpoint(source, source.resolve())
        second = cache.checkpoint(source, source.resolve(), verify=True)
    assert first == second
    assert digest.files_of(first) == source.resolve().files
    assert source.fetched == 1


def test_an_entry_says_what_it_is(source: FakeSource) -> None:
    resolved = source.resolve()
    with Cache() as cache:
        folder = cache.checkpoint(source, resolved)
        (entry,) = cache.entries()
    assert (entry.uri, entry.revision, entry.files) == ("fake:tiny", resolved.revision, resolved.files)
    assert entry.folder == folder.parent
    assert entry.size == sum(file.size for file in resolved.files)
    assert entry.last_use == pytest.approx(time.time(), abs=60)
    assert (folder.parent / "entry.json").read_text() == entry.text


def test_another_revision_is_another_entry(source: FakeSource, checkpoint: Path) -> None:
    with Cache() as cache:
        first = cache.checkpoint(source, source.resolve())
        (checkpoint / "config.json").write_text("[]")
        second = cache.checkpoint(source, source.resolve())
    assert first != second
    assert len(contents(cache)) == 2


def test_the_same_revision_with_another_choice_of_files_replaces_the_entry(
    source: FakeSource, checkpoint: Path
) -> None:
    resolved = source.resolve()
    with Cache() as cache:
        cache.checkpoint(source, resolved)
    (checkpoint / "new.json").write_text("{}")
    more = Resolved(revision=resolved.revision, files=digest.files_of(checkpoint))
    with Cache() as cache:
        folder = cache.checkpoint(source, more)
    assert (folder / "new.json").exists()
    assert len(contents(cache)) == 1


@pytest.mark.parametrize(("body", "verify"), [("[...]", False), ("[]", True)])
def test_a_damaged_entry_is_fetched_anew(
    source: FakeSource, caplog: pytest.LogCaptureFixture, body: str, verify: bool
) -> None:
    with Cache() as cache:
        folder = cache.checkpoint(source, source.resolve())
    (folder / "config.json").write_text(body)
    with Cache() as cache:
        cache.checkpoint(source, source.resolve(), verify=verify)
    assert (folder / "config.json").read_text() == "{}"
    assert "config.json: expected" in caplog.text
    assert "Fetching it again." in caplog.text


@pytest.mark.parametrize("text", ["", "{", "{}", '{"format": 99}'])
def test_an_entry_that_cannot_be_read_is_fetched_anew(source: FakeSource, text: str) -> None:
    with Cache() as cache:
        folder = cache.checkpoint(source, source.resolve())
    (folder.parent / "entry.json").write_text(text)
    with Cache() as cache:
        assert cache.checkpoint(source, source.resolve()) == folder
    assert source.fetched == 2


def test_what_was_fetched_must_be_what_was_locked(source: FakeSource) -> None:
    resolved = source.resolve()

    def spoil(folder: Path) -> None:
        (folder / "config.json").unlink()
        (folder / "evil").write_text("")

    source.meanwhile = spoil
    with Cache() as cache, pytest.raises(IntegrityError) as error:
        cache.checkpoint(source, resolved)
    assert str(error.value) == (
        "fake:tiny: not the files that were promised:\n  config.json: missing\n  evil: not listed"
    )
    assert contents(cache) == []


def test_resolving_by_fetching_fills_the_cache(checkpoint: Path) -> None:
    source = FetchingSource(checkpoint)
    with Cache() as cache:
        resolved = cache.resolve(source)
        cache.checkpoint(source, resolved)
        cache.resolve(source)
        cache.checkpoint(source, resolved)
    assert source.fetched == 2
    assert len(contents(cache)) == 1


# --- what can go wrong -------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_nothing_and_says_what_to_do(source: FakeSource) -> None:
    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder / "config.json"))

    source.meanwhile = full
    with Cache() as cache, pytest.raises(SourceError) as error:
        cache.checkpoint(source, source.resolve())
    assert str(error.value).startswith("fake:tiny: no space left while writing below ")
    assert str(error.value).endswith(
        "/files/config.json: free some space, run `prebake cache prune`, or put the cache elsewhere with --cache "
        "or PREBAKE_CACHE"
    )
    assert contents(cache) == []


def test_any_other_error_of_the_disk_is_said_too(source: FakeSource) -> None:
    def broken(folder: Path) -> None:
        raise OSError(errno.EIO, "Input/output error", str(folder))

    source.meanwhile = broken
    with Cache() as cache, pytest.raises(SourceError, match=r"^fake:tiny: cannot fetch into .*: Input/output error$"):
        cache.checkpoint(source, source.resolve())
    assert contents(cache) == []


def test_a_disk_that_is_really_full(
    tmp_path: Path, source: FakeSource, small_disk: Callable[[Path, str], Path]
) -> None:
    resolved = source.resolve()

    def fill(folder: Path) -> None:
        (folder / "more").write_bytes(bytes(1 << 20))

    source.meanwhile = fill
    with (
        Cache(small_disk(tmp_path / "small", "64k")) as cache,
        pytest.raises(SourceError, match="no space left while writing"),
    ):
        cache.checkpoint(source, resolved)
    assert contents(cache) == []


def test_space_is_looked_at_before_fetching(source: FakeSource, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=10)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    with Cache() as cache, pytest.raises(SourceError) as error:
        cache.checkpoint(source, source.resolve())
    assert str(error.value) == (
        f"fake:tiny: needs 707 bytes, but {cache.folder} has 10 free: free some space, run `prebake cache prune`, "
        "or put the cache elsewhere with --cache or PREBAKE_CACHE"
    )
    assert source.fetched == 0


def test_a_folder_that_cannot_hold_a_cache_is_wrong_use(tmp_path: Path, source: FakeSource) -> None:
    (tmp_path / "file").write_text("")
    with Cache(tmp_path / "file") as cache, pytest.raises(ConfigError) as error:
        cache.checkpoint(source, source.resolve())
    assert str(error.value) == (
        f"{tmp_path}/file: cannot use this folder as the build cache: Not a directory: "
        "name another with --cache or PREBAKE_CACHE"
    )


# --- many processes ----------------------------------------------------------------------------------------------

FORK = multiprocessing.get_context("fork")


def _fetch_slowly(cache: Path, checkpoint: Path, log: Path) -> None:
    def slow(folder: Path) -> None:
        with log.open("a") as file:
            file.write("fetched\n")
        time.sleep(0.2)

    source = FakeSource(checkpoint, meanwhile=slow)
    with Cache(cache) as opened:
        opened.checkpoint(source, source.resolve())


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_two_bakes_do_not_fetch_twice(tmp_path: Path, checkpoint: Path) -> None:
    log = tmp_path / "log"
    arguments = (tmp_path / "cache", checkpoint, log)
    processes = [FORK.Process(target=_fetch_slowly, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0] * 4
    assert log.read_text() == "fetched\n"


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from helpers import ROOT
from helpers.fake_sources import FakeSource
from prebake_build.cache.checkpoints import Cache
source = FakeSource(Path(sys.argv[3]), meanwhile=lambda folder: os.kill(os.getpid(), signal.SIGKILL))
Cache(Path(sys.argv[2])).checkpoint(source, source.resolve())
"""


def test_what_a_killed_fetch_left_is_removed_by_the_next(
    tmp_path: Path, source: FakeSource, checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with Cache(tmp_path / "cache") as cache:
        command = [sys.executable, "-c", KILLED, str(ROOT / "tests"), str(cache.folder), str(checkpoint)]
        assert subprocess.run(command).returncode == -signal.SIGKILL
        (left,) = contents(cache)
        assert left.endswith(".tmp")
        assert cache.entries() == ()
        folder = cache.checkpoint(source, source.resolve())
        assert contents(cache) == [folder.parent.name]
    assert f"{left}: removing what a killed command left" in caplog.text


# --- where it is -------------------------------------------------------------------------------------------------


def test_the_folder_is_that_of_the_variable_else_of_xdg_else_the_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/x")
    monkeypatch.setenv("PREBAKE_CACHE", "~/own")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert default_folder() == Path("/home/x/own")
    monkeypatch.delenv("PREBAKE_CACHE")
    assert default_folder() == Path("/xdg/prebake")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_folder() == Path("/home/x/.cache/prebake")
