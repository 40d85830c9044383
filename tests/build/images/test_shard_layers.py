"""A large model's shards have layers of their own; all that reads an image finds them there."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from helpers.baked_folders import baked_folder
from prebake.errors import ConfigError
from prebake_build.images import pack as packing
from prebake_build.images.checks.check import check
from prebake_build.images.checks.data import rules
from prebake_build.images.layers import layer_digest, shard_digests
from prebake_build.images.oci_layout import Layout
from prebake_build.images.opened import opened_models
from prebake_build.images.pack import Packing, pack

SHARDS = [f"model-{number:05}-of-00003.safetensors" for number in (1, 2, 3)]


def test_each_shard_has_a_layer_after_that_of_the_small_files(tmp_path: Path) -> None:
    models = [baked_folder(tmp_path / "models", "large", shards=3), baked_folder(tmp_path / "models", "ocr")]
    packed = pack(models, tmp_path / "oci", Packing())
    image = Layout.open(tmp_path / "oci").image()
    files = []
    for number in range(len(image.manifest.layers)):
        with tarfile.open(image.layer(number)) as archive:
            files.append([entry.name for entry in archive if entry.isreg() and "/.hub/" not in entry.name])
    assert files == [
        ["models/large/config.json", "models/large/manifest.json"],
        *([f"models/large/{shard}"] for shard in SHARDS),
        ["models/ocr/config.json", "models/ocr/manifest.json", "models/ocr/model.safetensors"],
    ]
    digests = [layer.digest for layer in image.manifest.layers]
    assert digests[0] == packed.layers["large"].digest == layer_digest(models[0])
    assert tuple(digests[1:4]) == shard_digests(models[0])
    assert [layer.digest for layer in packed.shards["large"]] == digests[1:4]
    assert (digests[4], shard_digests(models[1]), list(packed.shards)) == (packed.layers["ocr"].digest, (), ["large"])
    assert [layer.annotations.get("dev.prebake.file") for layer in image.manifest.layers] == [None, *SHARDS, None]
    assert image.config.instruction(2).endswith(f"{models[0].manifest.set_digest} {SHARDS[1]}")


def test_a_model_is_read_out_of_all_its_layers(tmp_path: Path) -> None:
    baked = baked_folder(tmp_path / "models", "large", shards=3)
    pack([baked], tmp_path / "oci", Packing())
    with opened_models(f"{tmp_path}/oci") as placed, opened_models(f"{tmp_path}/models") as folders:
        names = [f"{n}.{name}" for n in (1, 2, 3) for name in ("a.weight", "b.bias")]
        assert sorted(placed["large"].tensors()) == sorted(names)
        assert placed["large"].tensor_digests() == folders["large"].tensor_digests()
    assert [finding.rule for finding in check(Layout.open(tmp_path / "oci").image()) if "weights" in finding.rule] == []


def test_more_layers_than_can_be_mounted_are_refused_and_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    baked = baked_folder(tmp_path / "models", "large", shards=3)
    pack([baked], tmp_path / "oci", Packing())
    few = rules().__class__(**{**{name: getattr(rules(), name) for name in rules().__dataclass_fields__},
                               "most_layers": 3})  # fmt: skip
    monkeypatch.setattr(packing, "rules", lambda: few)
    with pytest.raises(ConfigError) as caught:
        pack([baked], tmp_path / "more", Packing())
    assert str(caught.value) == (
        f"{tmp_path}/more: an image of 4 layers, and overlay file systems mount at most 3: bake with a larger "
        "shard_size, or write fewer models into one image"
    )
    monkeypatch.setattr("prebake_build.images.checks.check.rules", lambda: few)
    (finding,) = [one for one in check(Layout.open(tmp_path / "oci").image()) if one.rule == "too-many-layers"]
    assert finding.message == "4 layers, and overlay file systems mount at most 3"


def test_a_layer_that_a_registry_refuses_is_warned_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    small = rules().__class__(**{**{name: getattr(rules(), name) for name in rules().__dataclass_fields__},
                                 "limits": {"ghcr": 6_000}})  # fmt: skip
    monkeypatch.setattr(packing, "rules", lambda: small)
    pack([baked_folder(tmp_path / "models", "large", shards=2)], tmp_path / "oci", Packing())
    assert caplog.messages == [
        f"large: the layer of {what} has {size}, more than some registries take (ghcr 6 kB): set a smaller shard_size "
        "and bake again"
        for what, size in (
            ("its files", "10.2 kB"), ("model-00001-of-00002.safetensors", "9.22 kB"),
            ("model-00002-of-00002.safetensors", "9.22 kB"),
        )
    ]  # fmt: skip
