"""`prebake cache`: what is there, whether it is whole, and what a prune removes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from helpers.fake_sources import FakeSource
from prebake.__main__ import main as prebake
from prebake_build.cache.checkpoints import Cache
from prebake_build.cache.entries import Entry, doomed
from prebake_build.cache.store import default_folder

# --- prune -------------------------------------------------------------------------------------------------------


def entry(name: str, size: int, last_use: float) -> Entry:
    from prebake.baked.manifest import File

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
        (
            ["--max-size", "many"],
            'argument --max-size: "many" is not a size (expected for example "1.5 GB" or "512 MiB")',
        ),
        (["--older-than", "-1"], "argument --older-than: '-1' is not a number of days"),
        (["--older-than", "nan"], "argument --older-than: 'nan' is not a number of days"),
    ],
)
def test_prune_wants_to_be_told(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        prebake(["cache", "prune", *arguments])
    assert error.value.code == 2
    assert capsys.readouterr().err.endswith(f"prebake cache prune: error: {message}\n")
