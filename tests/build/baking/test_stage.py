"""What the Dockerfile's stages run: one model's part of the models file, and its bake."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from prebake_build.baking.stage import main, select
from prebake_build.declared.lock import Lock
from prebake_build.declared.spec import read_spec

MODELS = """\
# a comment
[models.caption]
source = "dummy:blip-base?size=tiny"
dtype = "float32"

[models.florence]
source = "dummy:florence-2-base?size=tiny"
retries = 3
"""
LOCK = """\
format = 1

[models.caption]
source = "dummy:blip-base?size=tiny"
revision = "dummy:1"

[[models.caption.files]]
path = "config.json"
size = 2
sha256 = "{digest}"

[models.caption.baked]
set_digest = "sha256:{digest}"

[models.caption.baked.converter]
prebake-build = "0.1.0"

[models.florence]
source = "dummy:florence-2-base?size=tiny"
unresolved = "not yet"
""".format(digest="0" * 64)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    path = tmp_path / "models.toml"
    path.write_text(MODELS)
    return path


def selected(models: Path, name: str) -> dict[str, str]:
    """What `select` writes, by file name."""
    output = models.parent / f"selected-{name}"
    output.mkdir(exist_ok=True)
    select(models, name, output)
    return {path.name: path.read_text() for path in output.iterdir()}


def test_one_model_is_selected_as_it_was_declared(models: Path) -> None:
    (chosen,) = read_spec(models).select(["florence"])
    selected(models, "florence")
    assert read_spec(models.parent / "selected-florence/models.toml").models == (chosen,)


def test_a_changed_comment_or_another_model_selects_the_same_text(models: Path) -> None:
    models.with_suffix(".lock").write_text(LOCK)
    before = selected(models, "caption")
    models.write_text(MODELS.replace("a comment", "another").replace("retries = 3", "retries = 4"))
    models.with_suffix(".lock").write_text(LOCK.replace("not yet", "still not"))
    assert selected(models, "caption") == before


def test_what_a_bake_recorded_in_the_lock_selects_the_same_text(models: Path) -> None:
    models.with_suffix(".lock").write_text(LOCK)
    before = selected(models, "caption")
    models.with_suffix(".lock").write_text(LOCK.replace("0.1.0", "0.2.0"))
    assert selected(models, "caption") == before


def test_the_lock_that_is_selected_locks_the_same_files(models: Path) -> None:
    models.with_suffix(".lock").write_text(LOCK)
    text = selected(models, "caption")["models.lock"]
    (models.parent / "one.lock").write_text(text)
    before, after = Lock.read(models.with_suffix(".lock")), Lock.read(models.parent / "one.lock")
    assert list(after.models) == ["caption"]
    assert after.models["caption"].resolved == before.models["caption"].resolved


def test_without_a_lock_none_is_written(models: Path) -> None:
    assert list(selected(models, "caption")) == ["models.toml"]


def test_an_unknown_model_is_exit_2_with_the_nearest_name(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = models.parent
    assert main(["select", "captoin", "--models", str(models), "--output", str(output)]) == 2
    message = f'{models}: there is no model "captoin" (it has caption, florence): did you mean "caption"?'
    assert capsys.readouterr().err == f"prebake: error: {message}\n"


def fetched(models: Path, name: str) -> Path:
    """The models file that `fetch` writes."""
    output = models.parent / "fetched"
    assert main(["fetch", name, "--models", str(models), "--output", str(output)]) == 0
    return output / "models.toml"


def test_a_bake_gives_the_root_folder_no_time_either(models: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "models"
    assert main(["bake", "caption", "--models", str(fetched(models, "caption")), "--output", str(output)]) == 0
    assert {path.stat().st_mtime for path in (output, *output.rglob("*"))} == {0.0}
    assert (output / "caption/manifest.json").is_file()


def test_what_is_not_locked_is_resolved_by_fetch_and_handed_on_as_a_lock(models: Path) -> None:
    models.with_suffix(".lock").write_text(LOCK)  # says that florence is unresolved
    path = fetched(models, "florence")
    (chosen,) = read_spec(path).select(["florence"])
    lock = Lock.read(path.with_suffix(".lock"))
    assert list(lock.models) == ["florence"]
    resolved = lock.require("florence", chosen.source)
    assert [file.path for file in resolved.files if file.path.endswith(".safetensors")] == ["model.safetensors"]


def test_fetching_twice_writes_the_same_files(models: Path) -> None:
    """Otherwise a build whose fetch ran again would bake again too: BuildKit compares what the bake reads."""
    trees = []
    for _ in range(2):
        folder = fetched(models, "caption").parent
        trees.append({path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()})
    assert Path("models.lock") in trees[0]
    assert any(path.name == "pytorch_model.bin" for path in trees[0])
    assert trees[0] == trees[1]


def test_a_bake_needs_the_build_cache_no_more(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that `fetch` wrote is changed: a build mounts it read-only, and another step's cache mount is empty."""
    path = fetched(models, "caption")
    monkeypatch.setenv("PREBAKE_CACHE", "/proc/no/such/folder")
    before = {file: file.stat().st_mtime_ns for file in path.parent.rglob("*") if file.is_file()}
    (cached,) = path.parent.glob("cache/checkpoints/*/")
    assert main(["bake", "caption", "--models", str(path), "--output", str(tmp_path / "out")]) == 0
    after = {file: file.stat().st_mtime_ns for file in path.parent.rglob("*") if file.is_file()}
    records = {cached / "entry.json", cached / "proof.json"}  # when it was used last, and that it was hashed
    assert {file: time for file, time in after.items() if file not in records} == {
        file: time for file, time in before.items() if file not in records
    }


def test_a_bake_asks_no_source_and_says_what_to_run_where_the_checkpoint_is_gone(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = fetched(models, "caption")
    shutil.rmtree(path.parent / "cache")
    capsys.readouterr()
    assert main(["bake", "caption", "--models", str(path), "--output", str(tmp_path / "out")]) == 1
    revision = Lock.read(path.with_suffix(".lock")).require("caption", "dummy:blip-base?size=tiny").revision
    assert capsys.readouterr().err.endswith(
        f"prebake: error: dummy:blip-base?size=tiny: {path.parent}/cache has no intact copy of {revision}, and this "
        "step has no network: run `python -m prebake_build.baking.stage fetch` first\n"
    )


def test_a_bake_resolves_nothing(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bake", "caption", "--models", str(models), "--output", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.endswith(
        "prebake: error: dummy:blip-base?size=tiny: is not resolved, and this step has no network: run `python -m "
        "prebake_build.baking.stage fetch` first\n"
    )


def test_with_a_project_the_code_of_a_factory_is_selected_and_its_path_leads_to_the_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "models.toml").write_text(
        '[models.tagger]\nsource = "path:weights/tagger"\nclass = "torch:networks:make"\n'
    )
    (tmp_path / "networks.py").write_text("import torch\n")
    output = tmp_path / "selected"
    arguments = ["select", "tagger", "--models", str(tmp_path / "models.toml"), "--output", str(output)]
    assert main([*arguments, "--project", str(tmp_path)]) == 0
    assert sorted(path.relative_to(output).as_posix() for path in output.rglob("*")) == [
        "code", "code/networks.py", "models.toml", "weights"
    ]  # fmt: skip
    assert (output / "weights").readlink() == Path("/checkpoints")


# --- shards ------------------------------------------------------------------------------------------------------


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """What the step before the bake left: a model of four tensors, of 16 or 64 bytes."""
    torch.manual_seed(3)
    (tmp_path / "c").mkdir()
    torch.save(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)).state_dict(), tmp_path / "c" / "w.pth")
    (tmp_path / "models.toml").write_text('[models.m]\nsource = "path:c"\nclass = "tensors"\n')
    assert main(["fetch", "m", "--models", str(tmp_path / "models.toml"), "--output", str(tmp_path / "fetched")]) == 0
    return tmp_path / "fetched" / "models.toml"


def staged(large: Path, *arguments: str) -> int:
    here = ["--output", str(large.parents[1] / "out" / "models"), "--shard-size", "96", *arguments]
    return main(["bake", "m", "--models", str(large), *here])


def test_each_shard_gets_a_tree_of_its_own(large: Path) -> None:
    root = large.parents[1]
    assert staged(large, "--layers", "2") == 0
    shards = [f"models/m/model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    assert sorted(path.relative_to(root / "out").as_posix() for path in (root / "out").rglob("*.safetensors")) == []
    for number, shard in enumerate(shards, 1):
        tree = root / f"out.{number}"
        assert [path.relative_to(tree).as_posix() for path in sorted(tree.rglob("*"))] == ["models", "models/m", shard]
        assert [path.stat().st_mtime for path in tree.rglob("*")] == [0, 0, 0]
    assert (root / "out" / "models" / "m").stat().st_mtime == 0


def test_shards_stay_together_without_layers_for_them(large: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert staged(large) == 0
    root = large.parents[1]
    assert len(list((root / "out" / "models" / "m").glob("model-*.safetensors"))) == 2
    assert caplog.messages[-1] == (
        'm: was split into 2 files: with SHARDS = { "m" = 2 } in docker-bake.hcl, each has a layer of its own'
    )


def test_more_layers_than_shards_are_refused(large: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert staged(large, "--layers", "3") == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "prebake: error: models.m: was split into 2 files of weights, not 3: set SHARDS in docker-bake.hcl to "
        '{ "m" = 2 }'
    )
