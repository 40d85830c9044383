"""`prebake bake` makes the right folder, always the same, and only where it is not there already."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.baking import LINEAR, bake, declare, names, prebake, tree
from prebake.baked.manifest import Manifest
from prebake.baked.warmup import Inputs, Zeros
from prebake.documents.table import canonical_json
from prebake_build.baking.bake import recipe_digest
from prebake_build.declared.lock import Lock
from prebake_build.declared.spec import ModelSpec
from prebake_build.sources import Resolved

pytestmark = pytest.mark.usefixtures("in_process")


def test_a_model_is_baked_and_told(linear: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = bake(capsys, linear)
    manifest = Manifest.read(linear.parent / "out" / "m")
    assert (code, out) == (0, f"m  {manifest.set_digest}  32 bytes\n")
    assert names(linear.parent / "out" / "m") == ["manifest.json", "model.safetensors"]


def test_what_was_baked_is_told_as_json(linear: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = bake(capsys, linear, "--json")
    folder = linear.parent / "out" / "m"
    assert code == 0
    assert json.loads(out) == [{"name": "m", "folder": str(folder), "set_digest": Manifest.read(folder).set_digest}]


def test_only_the_named_models_are_baked(linear: Path, capsys: pytest.CaptureFixture[str]) -> None:
    declare(linear.parent, LINEAR + LINEAR.replace("models.m", "models.other"))
    assert bake(capsys, linear, "other")[0] == 0
    assert names(linear.parent / "out") == ["other"]


def test_the_manifest_has_what_models_toml_declares(linear: Path, capsys: pytest.CaptureFixture[str]) -> None:
    declare(linear.parent, LINEAR + "retries = 3\ntimeout = 7.5\nrequired = false\n")
    assert bake(capsys, linear)[0] == 0
    manifest = Manifest.read(linear.parent / "out" / "m")
    assert manifest.loading.to_dict() == {"retries": 3, "timeout": 7.5, "required": False}
    assert (manifest.family, manifest.class_, manifest.source.uri) == ("torch", "helpers.networks:linear", "path:c")
    assert manifest.source.revision.startswith("sha256:")


def test_the_manifest_has_a_warm_up_where_one_is_declared_and_the_bake_does_not_run_it(
    linear: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    declare(linear.parent, LINEAR + 'warmup = "absent.module:warm"\n')
    assert bake(capsys, linear)[0] == 0
    first = Manifest.read(linear.parent / "out" / "m")
    assert first.loading.to_dict()["warmup"] == "absent.module:warm"
    declare(linear.parent, LINEAR + "[models.m.warmup.inputs]\ninput = [[0.5, 1, 2]]\n")
    assert bake(capsys, linear)[0] == 0
    second = Manifest.read(linear.parent / "out" / "m")
    assert second.loading.to_dict()["warmup"] == {"method": "forward", "inputs": {"input": [[0.5, 1, 2]]}}
    assert second.files == first.files


def test_baking_twice_gives_the_same_bytes_modes_and_times(bert: Path) -> None:
    models = bert
    for output, seed in (("one", "0"), ("two/deep", "1")):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PREBAKE_CACHE": str(models.parent / f"cache-{seed}")}
        subprocess.run(
            [sys.executable, "-m", "prebake", "bake", "--models", str(models), "--output", output],
            cwd=models.parent, env=environment, check=True, capture_output=True, umask=0o077 if seed == "1" else 0o022,
        )  # fmt: skip
    one = tree(models.parent / "one" / "m")
    assert one == tree(models.parent / "two" / "deep" / "m")
    assert {mtime for _, mtime, _ in one.values()} == {0}


def test_a_model_that_is_up_to_date_is_left_alone(
    linear: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    bake(capsys, linear)
    folder = linear.parent / "out" / "m"
    before = folder.stat().st_ino
    caplog.set_level("INFO")
    code, out, _ = bake(capsys, linear)
    assert (code, folder.stat().st_ino) == (0, before)
    assert "[1/1] m: up to date" in caplog.messages
    assert out.startswith("m  sha256:")


def test_force_bakes_again_what_is_up_to_date(linear: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bake(capsys, linear)
    folder = linear.parent / "out" / "m"
    before, content = folder.stat().st_ino, tree(folder)
    assert bake(capsys, linear, "--force")[0] == 0
    assert folder.stat().st_ino != before
    assert tree(folder) == content


@pytest.mark.parametrize("file", ["model.safetensors", "manifest.json"])
@pytest.mark.parametrize("damage", [Path.unlink, lambda path: os.truncate(path, 10)], ids=["missing", "truncated"])
def test_a_damaged_folder_is_baked_again_or_refused(
    linear: Path, capsys: pytest.CaptureFixture[str], file: str, damage: Any
) -> None:
    bake(capsys, linear)
    folder = linear.parent / "out" / "m"
    before = tree(folder)
    damage(folder / file)
    code, _, err = bake(capsys, linear)
    if (folder / "manifest.json").exists():
        assert (code, tree(folder)) == (0, before)
    else:
        assert (code, "exists and is not a baked model" in err) == (2, True)


@pytest.mark.parametrize(
    "change",
    ["retries = 1", "timeout = 3", "required = false", 'dtype = "float16"', "arguments = {}", 'warmup = "a:b"'],
)
def test_a_changed_option_means_a_new_bake(linear: Path, capsys: pytest.CaptureFixture[str], change: str) -> None:
    bake(capsys, linear)
    folder = linear.parent / "out" / "m"
    before = folder.stat().st_ino
    declare(linear.parent, LINEAR + change + "\n")
    assert bake(capsys, linear)[0] == 0
    assert (folder.stat().st_ino == before) == (change == "arguments = {}")


def test_a_changed_checkpoint_means_a_new_bake(linear: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bake(capsys, linear)
    digest = Manifest.read(linear.parent / "out" / "m").set_digest
    torch.save(torch.nn.Linear(3, 2).state_dict(), linear.parent / "c" / "w.pth")
    assert bake(capsys, linear)[0] == 0
    assert Manifest.read(linear.parent / "out" / "m").set_digest != digest


def test_every_part_of_what_a_manifest_says_is_in_the_recipe() -> None:
    model = ModelSpec(name="m", source="path:c")
    resolved = Resolved(revision="commit:1", files=())
    known = {recipe_digest(model, resolved)}
    changes: dict[str, Any] = {"class_": "X", "dtype": "float16", "warmup": "app:warm"}
    options: list[dict[str, Any]] = [{"quantize": False}, {"arguments": {"a": 1}}, {"languages": ["ko"]}]
    for changed in (
        recipe_digest(model, replace(resolved, revision="commit:2")),
        recipe_digest(model, replace(resolved, licence="mit")),
        *(recipe_digest(replace(model, **{key: value}), resolved) for key, value in changes.items()),
        *(recipe_digest(replace(model, options=changed), resolved) for changed in options),
    ):
        assert changed not in known
        known.add(changed)


def test_the_recipe_of_a_model_without_a_warm_up_is_what_it_was_before_there_were_any(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    documents: list[Any] = []

    def noting(document: Any) -> str:
        documents.append(document)
        return canonical_json(document)

    monkeypatch.setattr("prebake_build.baking.bake.canonical_json", noting)
    model = ModelSpec(name="m", source="path:c")
    for warmup in (None, Inputs(values={"x": Zeros(shape=(1,))})):
        recipe_digest(replace(model, warmup=warmup), Resolved(revision="commit:1", files=()))
    assert documents[0]["model"] == {
        "name": "m", "source": "path:c", "family": None, "class_": None, "dtype": "source", "retries": 0,
        "quantize": True, "arguments": {}, "timeout": None, "required": True,
    }  # fmt: skip
    assert documents[1]["model"] == documents[0]["model"] | {
        "warmup": {"method": "forward", "inputs": {"x": {"shape": [1], "dtype": "float32"}}}
    }


# --- large models ------------------------------------------------------------------------------------------------


def test_a_shard_size_splits_and_another_bakes_again(
    linear: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    folder = linear.parent / "out" / "m"
    assert bake(capsys, linear, "--shard-size", "24")[0] == 0
    assert sorted(path.name for path in folder.glob("*.safetensors*")) == [
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"
    ]  # fmt: skip
    bake(capsys, linear, "--shard-size", "24")
    bake(capsys, linear)
    assert caplog.messages.count("[1/1] m: up to date") == 1
    assert [path.name for path in folder.glob("*.safetensors*")] == ["model.safetensors"]


def test_the_models_file_decides_before_the_option(linear: Path, capsys: pytest.CaptureFixture[str]) -> None:
    declare(linear.parent, LINEAR + 'shard_size = "1 GB"\n')
    assert bake(capsys, linear, "--shard-size", "24")[0] == 0
    assert (linear.parent / "out" / "m" / "model.safetensors").exists()


def test_the_default_size_changes_no_digest(
    linear: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    bake(capsys, linear)
    before = tree(linear.parent / "out" / "m")
    bake(capsys, linear, "--shard-size", "2 GB")
    assert "[1/1] m: up to date" in caplog.messages
    bake(capsys, linear, "--force", "--shard-size", "2 GB")
    assert tree(linear.parent / "out" / "m") == before


def test_a_folder_of_before_there_were_shards_is_baked_again(
    linear: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bake(capsys, linear, "--converted-size", "0")  # an older Prebake's key would be another one
    monkeypatch.setattr("prebake_build.baking.bake.SHARD_SIZE", 24)
    bake(capsys, linear)
    assert (linear.parent / "out" / "m" / "model-00001-of-00002.safetensors").exists()


@pytest.mark.parametrize(
    ("size", "message"),
    [("0", 'size: 0 bytes hold no weights (expected a size, such as "2 GB")'),
     ("2 XB", 'size: "2 XB" is not a size (expected for example "1.5 GB" or "512 MiB")')],
)  # fmt: skip
def test_a_wrong_shard_size_is_refused(
    linear: Path, capsys: pytest.CaptureFixture[str], size: str, message: str
) -> None:
    code, _, err = bake(capsys, linear, "--shard-size", size)
    assert (code, err.splitlines()[-1].endswith(f"argument --shard-size: {message}")) == (2, True)


def test_what_was_recorded_of_shards_is_baked_again_exactly(linear: Path, capsys: pytest.CaptureFixture[str]) -> None:
    declare(linear.parent, LINEAR + 'shard_size = "24"\n')
    assert prebake(capsys, "lock", "--models", linear)[0] == 0
    assert bake(capsys, linear, "--record")[0] == 0
    recorded = Lock.read(linear.with_suffix(".lock")).models["m"].baked
    assert recorded is not None
    assert len(recorded.shard_digests) == 2
    code, out, _ = bake(capsys, linear, "--locked", "--force", "--oci", linear.parent / "oci", "--json")
    (document,) = json.loads(out)
    assert (code, document["shard_digests"]) == (0, list(recorded.shard_digests))
    text = linear.with_suffix(".lock").read_text()
    linear.with_suffix(".lock").write_text(text.replace(recorded.shard_digests[1], "sha256:" + "7" * 64))
    code, _, err = bake(capsys, linear, "--locked")
    assert (code, f'shard_digests.00002: locked "sha256:{"7" * 64}", now ' in err) == (1, True)
