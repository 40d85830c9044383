"""A bake writes the view of the hub's cache beside the models, with canonical bytes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from helpers.adopted import COMMIT, bake_from_hub
from helpers.baking import names, prebake, save, tiny
from prebake_build.baking import bake
from prebake_build.baking.writer import alone_in, write_view

OTHER = "2" * 40


@pytest.fixture(scope="module")
def baked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one model from the hub. Copy before you change it."""
    place = tmp_path_factory.mktemp("view")
    bake_from_hub(save(tiny("BertForMaskedLM"), place / "c", "safetensors"), place / "out" / "m")
    return place / "out"


@pytest.fixture
def output(baked: Path, tmp_path: Path) -> Path:
    shutil.copytree(baked, tmp_path / "out")
    return tmp_path / "out"


def write(output: Path) -> dict[str, tuple[int, int, str]]:
    """Write the view; path → mode, mtime and target or text."""
    with alone_in(output):
        write_view(output)
    place = output / ".hub"
    found = {}
    for path in (place, *sorted(place.rglob("*"))):
        status = path.lstat()
        text = str(path.readlink()) if path.is_symlink() else path.read_text() if path.is_file() else ""
        found[path.relative_to(output).as_posix()] = (status.st_mode & 0o777, status.st_mtime_ns, text)
    return found


def test_links_are_inside_the_tree_and_times_are_zero(output: Path) -> None:
    found = write(output)
    snapshot = f".hub/models--acme--tiny/snapshots/{COMMIT}"
    assert {path: text for path, (_, _, text) in found.items() if text} == {
        ".hub/models--acme--tiny/refs/main": COMMIT,
        f"{snapshot}/config.json": "../../../../m/config.json",
        f"{snapshot}/model.safetensors": "../../../../m/model.safetensors",
    }
    assert {mtime for _, mtime, _ in found.values()} == {0}
    assert {mode for mode, _, text in found.values() if not text} == {0o755}
    assert found[".hub/models--acme--tiny/refs/main"][0] == 0o644
    assert (output / snapshot / "config.json").samefile(output / "m" / "config.json")
    assert write(output) == found
    assert names(output) == [".hub", "m"]


def test_another_commit_leaves_nothing_of_the_first(output: Path) -> None:
    write(output)
    shutil.rmtree(output / "m")
    bake_from_hub(save(tiny("BertForMaskedLM"), output.parent / "c", "safetensors"), output / "m", commit=OTHER)
    assert names(output / ".hub" / "models--acme--tiny" / "snapshots") == [COMMIT]
    write(output)
    assert names(output / ".hub" / "models--acme--tiny" / "snapshots") == [OTHER]


def test_the_last_model_takes_the_view_with_it(output: Path) -> None:
    write(output)
    shutil.rmtree(output / "m")
    with alone_in(output):
        write_view(output)
    assert names(output) == []


def test_commands_see_models_only(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(output)
    assert prebake(capsys, "verify", output)[0] == 0
    code, out, _ = prebake(capsys, "inspect", output)
    assert code == 0 and ".hub" not in out


def test_a_bake_writes_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, linear: Path) -> None:
    """At its end, also if a model failed."""
    seen: list[Path] = []
    monkeypatch.setattr(bake, "write_view", seen.append)
    monkeypatch.setattr(bake, "resolution", lambda *arguments: 1 // 0)
    from prebake_build.cache.checkpoints import Cache
    from prebake_build.declared.spec import read_spec

    with Cache(tmp_path / "cache") as cache, pytest.raises(ZeroDivisionError):
        bake.bake(read_spec(linear), [], None, cache, tmp_path / "out", force=False)
    assert seen == [tmp_path / "out"]
