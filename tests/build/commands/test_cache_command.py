"""`prebake cache`: what is there, whether it is whole, and what a prune removes."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.baking import flip_byte, torch_job
from helpers.fake_sources import FakeSource
from prebake.__main__ import main as prebake
from prebake_build.baking.worker import run
from prebake_build.cache.checkpoints import Cache
from prebake_build.cache.converted import Conversion, Conversions
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
    os.utime(found.folder / "files", (0, 0))
    return found


@pytest.fixture
def converted(tmp_path: Path) -> Conversion:
    """A baked model in the cache, which was used a day later than the checkpoint."""
    (tmp_path / "c").mkdir()
    torch.save(torch.nn.Linear(3, 2).state_dict(), tmp_path / "c" / "w.pth")
    run(torch_job(tmp_path / "c", tmp_path / "baked" / "m", "helpers.networks:linear"))
    store = Conversions()
    with store.alone("5" * 32, "waiting") as alone:
        assert alone and store.keep("5" * 32, tmp_path / "baked" / "m", {"torch": "1.0"})
    (found,) = store.entries()
    os.utime(found.folder / "entry.json", (0, 2 * 86_400))
    os.utime(found.folder / "files", (0, 86_400))
    return found


@pytest.fixture
def partial() -> Path:
    """An unfinished download of 30 bytes, three days old."""
    folder = default_folder() / "checkpoints" / f"{'a' * 16}.parts.tmp"
    folder.mkdir(parents=True)
    (folder / "0.part").write_bytes(b"a" * 30)
    folder.with_name("a" * 16 + ".lock").touch()
    for path in (folder / "0.part", folder):
        os.utime(path, (0, 3 * 86_400))
    return folder


def document(found: Entry) -> dict[str, Any]:
    return {
        "key": found.folder.name, "kind": "checkpoint", "uri": "fake:tiny", "revision": found.revision, "files": 3,
        "size": 707, "created": "1970-01-01T00:00:00Z", "last_use": "1970-01-02T00:00:00Z",
        "path": f"{found.folder}/files",
    }  # fmt: skip


def line(found: Entry) -> str:
    age = f"{time.time() / 86_400:.0f}d"
    return f"{found.folder.name}  checkpoint    707 B  {age:>5}  1970-01-02T00:00:00Z  fake:tiny  {found.revision}"


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert prebake(["cache", "list", "--json", *arguments]) == 0
    entries: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["entries"]
    return entries


def test_list_prints_entries_on_stdout_and_the_sum_on_stderr(filled: Entry, capsys: pytest.CaptureFixture[str]) -> None:
    assert prebake(["cache", "list"]) == 0
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == (f"{line(filled)}\n", f"{default_folder()}: 1 entry, 707 B\n")


def test_list_as_json(filled: Entry, capsys: pytest.CaptureFixture[str]) -> None:
    assert prebake(["cache", "list", "--json", "--cache", str(default_folder())]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "cache": str(default_folder()), "entries": [{**document(filled), "in_use": False}]
    }  # fmt: skip


def test_all_kinds_are_listed_the_most_recently_used_first(
    filled: Entry, converted: Conversion, partial: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = listed(capsys)
    assert [entry["kind"] for entry in found] == ["partial", "converted", "checkpoint"]
    assert found[0]["size"] == 30
    assert found[1] == {
        "key": "5" * 32, "kind": "converted", "name": "m", "uri": "path:checkpoint", "revision": converted.revision,
        "set_digest": converted.set_digest, "versions": {"torch": "1.0"}, "size": converted.size,
        "created": "1970-01-02T00:00:00Z", "last_use": "1970-01-03T00:00:00Z", "path": f"{converted.folder}/files",
        "in_use": False,
    }  # fmt: skip
    assert [entry["kind"] for entry in listed(capsys, "--kind", "partial", "--kind", "checkpoint")] == [
        "partial", "checkpoint"
    ]  # fmt: skip
    assert prebake(["cache", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("1970-01-04T00:00:00Z  unfinished downloads")
    assert lines[1].endswith(f"1970-01-03T00:00:00Z  m  path:checkpoint  {converted.set_digest}")


def test_list_tells_what_is_in_use_and_so_not_pruned(
    filled: Entry, converted: Conversion, source: FakeSource, capsys: pytest.CaptureFixture[str]
) -> None:
    with Cache() as cache, Conversions().alone(converted.key, "waiting"):
        cache.checkpoint(source, source.resolve())
        assert [entry["in_use"] for entry in listed(capsys)] == [True, True]
        assert prebake(["cache", "list", "--kind", "converted"]) == 0
        assert capsys.readouterr().out.endswith("  (in use)\n")


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
    assert printed.err == "1 of 1 entry, 707 B damaged: the next bake fetches it again\n"
    assert prebake(["cache", "verify", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["entries"][0]["damage"].startswith(str(filled.folder))


def test_verify_hashes_converted_models_too(
    filled: Entry, converted: Conversion, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prebake(["cache", "verify"]) == 0
    assert capsys.readouterr().out.count("ok  ") == 2
    flip_byte(converted.folder / "files" / "model.safetensors")
    assert prebake(["cache", "verify", "--kind", "checkpoint"]) == 0
    capsys.readouterr()
    assert prebake(["cache", "verify", "--kind", "converted"]) == 1
    printed = capsys.readouterr()
    assert printed.out.startswith(
        f"{converted.folder} (m): not the files that were promised:\n  model.safetensors: expected sha256 "
    )
    assert printed.err.endswith(" damaged: the next bake converts it again\n")
    (filled.folder / "files" / "config.json").write_text("[]")
    assert prebake(["cache", "verify"]) == 1
    assert capsys.readouterr().err.endswith(" damaged: the next bake converts or fetches them again\n")


def test_what_verify_hashes_is_not_removed_meanwhile_and_what_was_is_no_damage(
    filled: Entry, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    removed, check = [], Entry.check

    def checking(entry: Entry, *, trust: bool = True) -> None:
        removed.append(Cache().remove(entry))
        check(entry, trust=trust)

    monkeypatch.setattr(Entry, "check", checking)
    assert (prebake(["cache", "verify"]), removed) == (0, [False])
    monkeypatch.setattr(Cache, "entries", lambda cache: [filled])  # as listed before it was removed
    assert Cache().remove(filled)
    capsys.readouterr()
    assert (prebake(["cache", "verify"]), removed) == (0, [False])
    assert capsys.readouterr() == ("", "")


def test_a_dry_run_removes_nothing(
    filled: Entry, converted: Conversion, partial: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prebake(["cache", "prune", "--older-than", "30", "--dry-run"]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1] == f"would remove  {line(filled)}"
    assert printed.out.count("would remove") == 3
    assert printed.err.startswith(f"{default_folder()}: would free ")
    assert prebake(["cache", "prune", "--older-than", "30", "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["dry_run"], len(found["removed"]), found["in_use"]) == (True, 3, [])
    assert len(listed(capsys)) == 3


def test_prune_by_kind_and_by_size(
    filled: Entry, converted: Conversion, partial: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prebake(["cache", "prune", "--kind", "converted", "--all"]) == 0
    assert [entry["kind"] for entry in listed(capsys)[-2:]] == ["partial", "checkpoint"]
    assert prebake(["cache", "prune", "--max-size", "500B"]) == 0  # the checkpoint goes, used before the download
    capsys.readouterr()
    assert [entry["kind"] for entry in listed(capsys)] == ["partial"]
    assert prebake(["cache", "prune", "--kind", "partial", "--older-than", "1"]) == 0
    capsys.readouterr()
    assert listed(capsys) == []
    assert [*(default_folder() / "checkpoints").iterdir(), *(default_folder() / "converted").iterdir()] == []


def test_prune_leaves_unfinished_downloads_that_are_not_old_and_nothing_dead(
    filled: Entry, partial: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (partial / "0.part").touch()
    dead = partial.with_name(f"{'a' * 16}.dead.tmp")
    dead.mkdir()
    assert prebake(["cache", "prune", "--older-than", "30"]) == 0
    assert [entry["kind"] for entry in listed(capsys)[-1:]] == ["partial"]
    assert not dead.exists()


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
