"""Converted models in the build cache: whole or absent, copied and hashed, within a size, shared by processes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from helpers.baking import flip_byte, names, torch_job, tree
from prebake.baked.manifest import Manifest
from prebake.errors import IntegrityError
from prebake_build.baking.worker import run
from prebake_build.cache.converted import Conversion, Conversions

KEY, OTHER, THIRD = "0" * 32, "1" * 32, "2" * 32
RECIPE = "sha256:" + "1" * 64
VERSIONS = {"torch": "1.0"}


@pytest.fixture
def baked(tmp_path: Path) -> Path:
    """A baked model, whose manifest has the recipe RECIPE."""
    (tmp_path / "c").mkdir()
    torch.save(torch.nn.Linear(3, 2).state_dict(), tmp_path / "c" / "w.pth")
    run(torch_job(tmp_path / "c", tmp_path / "baked" / "m", "helpers.networks:linear"))
    return tmp_path / "baked" / "m"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "target" / "m").mkdir(parents=True)
    return tmp_path / "target" / "m"


@pytest.fixture
def converted(tmp_path: Path) -> Conversions:
    return Conversions(tmp_path / "cache")


def keep(converted: Conversions, baked: Path, *keys: str) -> bool:
    kept = []
    for key in keys or (KEY,):
        with converted.alone(key, "waiting") as alone:
            kept.append(alone and converted.keep(key, baked, VERSIONS))
    return all(kept)


def contents(converted: Conversions) -> list[str]:
    return sorted(path.name for path in converted.place.iterdir() if path.suffix != ".lock")


# --- one entry ---------------------------------------------------------------------------------------------------


def test_what_was_kept_is_taken_with_the_same_bytes(converted: Conversions, baked: Path, target: Path) -> None:
    assert not converted.take(KEY, target, RECIPE)
    assert keep(converted, baked)
    assert converted.take(KEY, target, RECIPE)
    assert {path: digest for path, (_, _, digest) in tree(target).items()} == {
        path: digest for path, (_, _, digest) in tree(baked).items()
    }
    assert converted.size_of(KEY, RECIPE) == sum(path.stat().st_size for path in target.iterdir())
    assert converted.size_of(OTHER, RECIPE) is None


def test_an_entry_says_what_it_is(converted: Conversions, baked: Path) -> None:
    keep(converted, baked)
    (entry,) = converted.entries()
    manifest = Manifest.read(baked)
    assert (entry.key, entry.kind, entry.name, entry.uri) == (KEY, "converted", "m", "path:checkpoint")
    assert (entry.set_digest, entry.recipe, entry.versions) == (manifest.set_digest, RECIPE, VERSIONS)
    assert (entry.folder / "entry.json").read_text() == entry.text
    entry.check()


def test_a_change_of_what_was_taken_does_not_reach_the_cache(converted: Conversions, baked: Path, target: Path) -> None:
    keep(converted, baked)
    converted.take(KEY, target, RECIPE)
    for folder in (baked, target):
        flip_byte(folder / "model.safetensors")
    (entry,) = converted.entries()
    entry.check()


def test_under_a_umask_that_lets_a_group_write_an_entry_is_taken_too(
    converted: Conversions, baked: Path, target: Path
) -> None:
    before = os.umask(0)
    try:
        keep(converted, baked)
    finally:
        os.umask(before)
    assert converted.take(KEY, target, RECIPE)


def test_an_older_entry_of_the_key_is_replaced(converted: Conversions, baked: Path, tmp_path: Path) -> None:
    keep(converted, baked)
    shutil.rmtree(baked)
    torch.save(torch.nn.Linear(3, 2).state_dict(), tmp_path / "c" / "w.pth")
    run(torch_job(tmp_path / "c", baked, "helpers.networks:linear"))
    keep(converted, baked)
    (entry,) = converted.entries()
    assert entry.set_digest == Manifest.read(baked).set_digest
    assert contents(converted) == [KEY]


def test_a_folder_that_is_not_what_its_manifest_says_is_not_kept(
    converted: Conversions, baked: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flip_byte(baked / "model.safetensors")
    assert not keep(converted, baked)
    assert "m: not kept in the build cache: " in caplog.text
    assert "model.safetensors: expected sha256 " in caplog.text
    assert contents(converted) == []


# --- damage, and what others wrote -------------------------------------------------------------------------------


def rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda entry: flip_byte(entry / "files" / "model.safetensors"), "  model.safetensors: expected sha256 "),
        (lambda entry: os.truncate(entry / "files" / "model.safetensors", 9), ": expected "),
        (lambda entry: (entry / "files" / "model.safetensors").unlink(), "  model.safetensors: missing"),
        (lambda entry: flip_byte(entry / "files" / "manifest.json", 5), "  manifest.json: expected sha256 "),
        (lambda entry: (entry / "files" / "manifest.json").unlink(), "  manifest.json: missing"),
        (lambda entry: (entry / "entry.json").unlink(), "entry.json: there is no such file (expected a cache entry)"),
        (lambda entry: (entry / "entry.json").write_text("{"), "entry.json: this cache entry is not JSON: "),
        (lambda entry: rewrite(entry / "entry.json", key=OTHER), f" (m): was written as {OTHER}, of the recipe "),
        (lambda entry: rewrite(entry / "entry.json", recipe="x"), f" (m): was written as {KEY}, of the recipe x"),
        (lambda entry: rewrite(entry / "entry.json", set_digest="x"), "  manifest.json: is of another model"),
        (lambda entry: entry.chmod(0o777), f"{KEY}: others than this user can write to it"),
        (lambda entry: (entry / "entry.json").chmod(0o666), "entry.json: others than this user can write to it"),
    ],
    ids=["flipped", "truncated", "missing", "manifest", "no manifest", "no entry", "broken entry", "other key",
         "other recipe", "other digest", "open folder", "open entry"],
)  # fmt: skip
def test_a_damaged_entry_is_said_not_taken_and_replaced(
    converted: Conversions, baked: Path, target: Path, caplog: pytest.LogCaptureFixture,
    spoil: Callable[[Path], object], said: str,
) -> None:  # fmt: skip
    keep(converted, baked)
    spoil(converted.place / KEY)
    assert not converted.take(KEY, target, RECIPE)
    assert said in caplog.text
    assert caplog.messages[0].endswith("\nConverting it again.")
    assert names(target) == []
    assert keep(converted, baked)
    assert converted.take(KEY, target, RECIPE)


def test_an_entry_of_another_user_is_not_taken(
    converted: Conversions, baked: Path, target: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files to others")
    keep(converted, baked)
    os.chown(converted.place / KEY, 1234, 1234)
    assert not converted.take(KEY, target, RECIPE)
    assert caplog.messages == [
        f"{converted.place / KEY}: others than this user can write to it\nConverting it again."
    ]  # fmt: skip


def test_a_model_in_another_models_place_is_not_taken(converted: Conversions, baked: Path, target: Path) -> None:
    keep(converted, baked)
    (converted.place / KEY).rename(converted.place / OTHER)
    assert not converted.take(OTHER, target, RECIPE)
    with pytest.raises(IntegrityError) as error:
        Conversion.read(converted.place / OTHER).check()
    assert str(error.value) == f"{converted.place / OTHER} (m): was written as {KEY}"


def test_files_that_the_manifest_does_not_list_are_not_copied_and_verify_tells(
    converted: Conversions, baked: Path, target: Path
) -> None:
    keep(converted, baked)
    (converted.place / KEY / "files" / "evil.py").write_text("")
    assert converted.take(KEY, target, RECIPE)
    assert names(target) == ["manifest.json", "model.safetensors"]
    with pytest.raises(IntegrityError, match=r"\n  evil\.py: not listed$"):
        converted.entries()[0].check()


# --- size --------------------------------------------------------------------------------------------------------


def used(converted: Conversions, key: str, seconds: float) -> None:
    os.utime(converted.place / key / "entry.json", (seconds, seconds))


def test_the_least_recently_used_make_room(converted: Conversions, baked: Path, target: Path) -> None:
    keep(converted, baked, KEY, OTHER)
    converted.limit = 2 * (converted.size_of(KEY, RECIPE) or 0)
    used(converted, KEY, 1)
    used(converted, OTHER, 2)
    assert converted.take(KEY, target, RECIPE)  # which is a use
    assert keep(converted, baked, THIRD)
    assert contents(converted) == [KEY, THIRD]


def test_one_in_use_stays_and_then_there_is_no_room(
    converted: Conversions, baked: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keep(converted, baked)
    converted.limit = converted.size_of(KEY, RECIPE) or 0
    with Conversions(tmp_path / "cache").alone(KEY, "waiting"):
        assert not keep(converted, baked, OTHER)
    assert "and other builds use what would have to go" in caplog.text
    assert contents(converted) == [KEY]
    assert keep(converted, baked, OTHER)
    assert contents(converted) == [OTHER]


def test_a_model_above_the_limit_is_not_kept(
    converted: Conversions, baked: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keep(converted, baked, OTHER)
    converted.limit = 100
    assert not keep(converted, baked)
    (message,) = caplog.messages
    assert message.startswith("m: not kept in the build cache: it takes ")
    assert message.endswith(", and the limit is 100 B (--converted-size)")
    assert contents(converted) == [OTHER]


@pytest.mark.parametrize(("more", "left"), [(0, [KEY]), (-1, [OTHER])], ids=["enough", "one byte short"])
def test_a_part_of_the_disk_stays_free(
    converted: Conversions, baked: Path, monkeypatch: pytest.MonkeyPatch, more: int, left: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    keep(converted, baked, OTHER)
    size = converted.size_of(OTHER, RECIPE) or 0
    usage = shutil.disk_usage("/")._replace(total=20_000, free=1_000 + more)  # what is removed makes room for itself
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    assert keep(converted, baked) == (more == 0)
    assert contents(converted) == left
    assert bool(caplog.messages) == (more < 0)
    assert size > 1_000


def test_a_disk_that_is_full_is_said_and_leaves_nothing(
    baked: Path, tmp_path: Path, small_disk: Callable[[Path, str], Path], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    converted = Conversions(small_disk(tmp_path / "small", "4k"))
    monkeypatch.setattr(Conversions, "_make_room", lambda self, key, size: None)
    assert not keep(converted, baked)
    assert caplog.messages == ["m: not kept in the build cache: No space left on device"]
    assert contents(converted) == []


def test_a_disk_without_room_is_said_before_anything_is_written(
    baked: Path, tmp_path: Path, small_disk: Callable[[Path, str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    converted = Conversions(small_disk(tmp_path / "small", "4k"))
    assert not keep(converted, baked)
    (message,) = caplog.messages
    assert message.startswith("m: not kept in the build cache: it takes ")
    assert message.endswith(" free, and 204 B stay free")


def test_a_cache_on_another_disk(
    baked: Path, target: Path, tmp_path: Path, small_disk: Callable[[Path, str], Path]
) -> None:
    converted = Conversions(small_disk(tmp_path / "small", "1m"))
    assert keep(converted, baked)
    assert converted.take(KEY, target, RECIPE)
    assert tree(target).keys() == tree(baked).keys()


# --- leftovers ---------------------------------------------------------------------------------------------------


def test_leftovers_go_with_the_next_write_or_prune(converted: Conversions, baked: Path) -> None:
    keep(converted, baked)
    for key in (KEY, OTHER):
        (converted.place / f"{key}.dead.tmp" / "files").mkdir(parents=True)
        (converted.place / f"{key}.lock").touch()
    assert len(converted.entries()) == 1
    keep(converted, baked)
    assert contents(converted) == [KEY, f"{OTHER}.dead.tmp"]
    assert converted.remove_leftovers() == [converted.place / f"{OTHER}.dead.tmp"]
    assert sorted(path.name for path in converted.place.iterdir()) == [KEY, f"{KEY}.lock"]


def test_an_entry_is_removed_once(converted: Conversions, baked: Path) -> None:
    keep(converted, baked)
    (entry,) = converted.entries()
    assert converted.remove(entry)
    assert converted.remove(entry)
    assert contents(converted) == []
