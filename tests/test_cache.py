"""The build cache, and `prebake cache`."""

from __future__ import annotations

import errno
import json
import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from prebake.__main__ import main as prebake
from prebake.errors import ConfigError, IntegrityError, SourceError
from prebake.manifest import set_digest
from prebake_build import digest
from prebake_build.cache import Cache, Entry, default_folder, doomed
from prebake_build.sources import Resolved


@dataclass
class FakeSource:
    """Copies `folder`; counts, and can be told to do something in the middle."""

    folder: Path
    uri: str = "fake:tiny"
    fetched: int = 0
    meanwhile: Callable[[Path], None] = field(default=lambda folder: None)

    def resolve(self) -> Resolved:
        files = digest.files_of(self.folder)
        return Resolved(revision=set_digest(files), files=files)

    def fetch(self, resolved: Resolved, folder: Path) -> None:
        self.fetched += 1
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        self.meanwhile(folder)


@dataclass
class FetchingSource(FakeSource):
    def resolve_into(self, folder: Path) -> Resolved:
        resolved = self.resolve()
        self.fetch(resolved, folder)
        return resolved


@pytest.fixture
def source(checkpoint: Path) -> FakeSource:
    return FakeSource(checkpoint)


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


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_disk_that_is_really_full(tmp_path: Path, source: FakeSource, checkpoint: Path) -> None:
    (tmp_path / "small").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path / "small")]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this container may not mount a tmpfs")
    try:
        resolved = source.resolve()

        def fill(folder: Path) -> None:
            (folder / "more").write_bytes(bytes(1 << 20))

        source.meanwhile = fill
        with Cache(tmp_path / "small") as cache, pytest.raises(SourceError, match="no space left while writing"):
            cache.checkpoint(source, resolved)
        assert contents(cache) == []
    finally:
        subprocess.run(["umount", str(tmp_path / "small")], check=True)


def test_space_is_looked_at_before_fetching(source: FakeSource, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=10)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    with Cache() as cache, pytest.raises(SourceError) as error:
        cache.checkpoint(source, source.resolve())
    assert str(error.value) == (
        f"fake:tiny: needs 707 bytes, and {cache.folder} has 10 free: free some space, run `prebake cache prune`, "
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
from test_cache import FakeSource
from prebake_build.cache import Cache
source = FakeSource(Path(sys.argv[3]), meanwhile=lambda folder: os.kill(os.getpid(), signal.SIGKILL))
Cache(Path(sys.argv[2])).checkpoint(source, source.resolve())
"""


def test_what_a_killed_fetch_left_is_removed_by_the_next(
    tmp_path: Path, source: FakeSource, checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with Cache(tmp_path / "cache") as cache:
        command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(cache.folder), str(checkpoint)]
        assert subprocess.run(command).returncode == -signal.SIGKILL
        (left,) = contents(cache)
        assert left.endswith(".tmp")
        assert cache.entries() == ()
        folder = cache.checkpoint(source, source.resolve())
        assert contents(cache) == [folder.parent.name]
    assert f"{left}: removing what an interrupted fetch left" in caplog.text


# --- prune -------------------------------------------------------------------------------------------------------


def entry(name: str, size: int, last_use: float) -> Entry:
    from prebake.manifest import File

    files = (File(path="x", size=size, sha256="0" * 64),)
    return Entry(folder=Path(name), uri=name, revision="sha256:0", files=files, last_use=last_use)


@pytest.mark.parametrize(
    ("rules", "removed"),
    [
        ({}, []),
        ({"older_than": 50}, ["old"]),
        ({"older_than": 0}, ["middle", "old"]),
        ({"max_size": 0}, ["new", "middle", "old"]),
        ({"max_size": 15}, ["middle", "old"]),
        ({"max_size": 40}, []),
        ({"max_size": 30, "older_than": 50}, ["old"]),
        # A large entry does not push out smaller ones that were used before it.
        ({"max_size": 20}, ["middle"]),
    ],
)
def test_which_entries_a_prune_removes(rules: dict[str, Any], removed: list[str]) -> None:
    entries = [entry("new", 10, 100), entry("middle", 20, 70), entry("old", 10, 20)]
    assert [found.uri for found in doomed(entries, now=100, **rules)] == removed


def test_an_entry_in_use_is_not_removed(source: FakeSource) -> None:
    with Cache() as mine:
        folder = mine.checkpoint(source, source.resolve())
        with Cache() as other:
            assert other.remove(other.entries()[0]) is False
        assert (folder / "config.json").exists()
    with Cache() as other:
        assert other.remove(other.entries()[0]) is True
        other.remove_leftovers()
        assert list(other.checkpoints.iterdir()) == []


# --- the command -------------------------------------------------------------------------------------------------


@pytest.fixture
def filled(source: FakeSource) -> Entry:
    with Cache() as cache:
        cache.checkpoint(source, source.resolve())
        (found,) = cache.entries()
    os.utime(found.folder / "entry.json", (0, 86_400))
    return found


def document(found: Entry) -> dict[str, Any]:
    return {
        "key": found.folder.name, "uri": "fake:tiny", "revision": found.revision, "files": 3, "size": 707,
        "last_use": "1970-01-02T00:00:00Z", "path": f"{found.folder}/files",
    }  # fmt: skip


def test_list_prints_entries_on_stdout_and_the_sum_on_stderr(filled: Entry, capsys: pytest.CaptureFixture[str]) -> None:
    assert prebake(["cache", "list"]) == 0
    printed = capsys.readouterr()
    line = f"{filled.folder.name}      707 B  1970-01-02T00:00:00Z  fake:tiny  {filled.revision}\n"
    assert (printed.out, printed.err) == (line, f"{default_folder()}: 1 entry, 707 B\n")


def test_list_as_json(filled: Entry, capsys: pytest.CaptureFixture[str]) -> None:
    assert prebake(["cache", "list", "--json", "--cache", str(default_folder())]) == 0
    assert json.loads(capsys.readouterr().out) == {"cache": str(default_folder()), "entries": [document(filled)]}


def test_an_empty_cache_is_fine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for action in (["list"], ["verify"], ["prune", "--all"]):
        assert prebake(["cache", *action, "--cache", str(tmp_path / "none")]) == 0
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "none").exists()


def test_verify_hashes_everything(filled: Entry, capsys: pytest.CaptureFixture[str]) -> None:
    assert prebake(["cache", "verify"]) == 0
    assert capsys.readouterr().out.startswith("ok  ")
    (filled.folder / "files" / "config.json").write_text("[]")
    assert prebake(["cache", "verify"]) == 1
    printed = capsys.readouterr()
    assert printed.out.startswith(
        f"{filled.folder} (fake:tiny): not the files that were promised:\n  config.json: expected sha256 "
    )
    assert printed.err == "1 of 1 entry, 707 B damaged: the next bake fetches them again\n"
    assert prebake(["cache", "verify", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["entries"][0]["damage"].startswith(str(filled.folder))


def test_prune_says_what_it_removed_and_freed(filled: Entry, capsys: pytest.CaptureFixture[str]) -> None:
    assert prebake(["cache", "prune", "--max-size", "1kB"]) == 0
    assert capsys.readouterr().out == ""
    assert prebake(["cache", "prune", "--older-than", "30"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith(f"removed  {filled.folder.name}")
    assert printed.err == f"{default_folder()}: freed 707 B\n"
    assert list(filled.folder.parent.iterdir()) == []


def test_prune_keeps_what_is_in_use(filled: Entry, source: FakeSource, capsys: pytest.CaptureFixture[str]) -> None:
    with Cache() as cache:
        cache.checkpoint(source, source.resolve())
        assert prebake(["cache", "prune", "--all", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["removed"], [entry["uri"] for entry in found["in_use"]]) == ([], ["fake:tiny"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say what to remove: --older-than DAYS, --max-size SIZE or --all"),
        (["--max-size", "many"], "argument --max-size: 'many' is no size (500MB, 20GB, 1TiB, or bytes)"),
        (["--older-than", "-1"], "argument --older-than: '-1' is no number of days"),
        (["--older-than", "nan"], "argument --older-than: 'nan' is no number of days"),
    ],
)
def test_prune_wants_to_be_told(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        prebake(["cache", "prune", *arguments])
    assert error.value.code == 2
    assert capsys.readouterr().err.endswith(f"prebake cache prune: error: {message}\n")


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("500", 500), ("1.5kB", 1500), ("20GB", 20 * 10**9), ("1TiB", 2**40), ("2 Mi", 2**21)]
)
def test_sizes(text: str, size: int) -> None:
    from prebake_build.commands.cache import _size

    assert _size(text) == size


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
