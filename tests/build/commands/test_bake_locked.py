"""`bake --record` writes down what a bake gave, `--locked` gives exactly that or fails with every difference, and
`--oci` writes it as an image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.baking import LINEAR, bake, declare, here, names, prebake, tree
from helpers.networks import linear as make_linear
from prebake.baked.model import BakedModel
from prebake_build.declared.lock import Lock
from prebake_build.images.layers import layer_digest
from prebake_build.images.oci_layout import Layout

TWO = LINEAR + LINEAR.replace("models.m]", "models.other]")


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `models.toml` of two models of one checkpoint, locked; a bake runs in this process."""
    monkeypatch.setenv("PREBAKE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    here(monkeypatch)
    (tmp_path / "c").mkdir()
    torch.manual_seed(3)
    torch.save(make_linear().state_dict(), tmp_path / "c" / "w.pth")
    return declare(tmp_path, TWO)


def lock(capsys: pytest.CaptureFixture[str], models: Path) -> None:
    assert prebake(capsys, "lock", "--models", models)[0] == 0


def recorded(capsys: pytest.CaptureFixture[str], models: Path) -> Any:
    lock(capsys, models)
    assert bake(capsys, models, "--record")[0] == 0
    return Lock.read(models.with_suffix(".lock"))


def test_record_joins_source_versions_options_and_both_digests(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    declare(models.parent, TWO + "retries = 2\n[models.other.warmup.inputs]\ninput = [[0.5, 1, 2]]\n")
    locked = recorded(capsys, models).models["other"]
    baked = BakedModel.open(models.parent / "out" / "other")
    assert locked.resolved and [file.path for file in locked.resolved.files] == ["w.pth"]
    assert locked.baked.to_dict() == {
        "set_digest": baked.manifest.set_digest,
        "layer_digest": layer_digest(baked),
        "converter": dict(baked.manifest.converter),
        "requires": dict(baked.manifest.requires),
        "options": {
            "class": "helpers.networks:linear", "family": "torch", "retries": 2,
            "warmup": {"inputs": {"input": [[0.5, 1, 2]]}, "method": "forward"},
        },
    }  # fmt: skip
    lock(capsys, models)
    assert Lock.read(models.with_suffix(".lock")).models["other"].baked == locked.baked


def test_locked_bakes_what_was_recorded_and_its_image_has_the_recorded_layers(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock_ = recorded(capsys, models)
    code, out, err = bake(capsys, models, "--locked", "--force", "--oci", models.parent / "oci")
    assert code == 0, err
    layers = {name: model.baked.layer_digest for name, model in lock_.models.items()}
    image = Layout.open(models.parent / "oci").image()
    assert [layer.digest for layer in image.manifest.layers] == list(layers.values())
    index = Layout.open(models.parent / "oci").index.manifests[0].digest
    digests = {name: model.baked.set_digest for name, model in lock_.models.items()}
    assert out.splitlines() == [
        *(f"{name}  {digests[name]}  32 bytes  layer {layer}" for name, layer in layers.items()),
        f"{models.parent / 'oci'}:latest  {index}",
    ]


def test_json_has_the_layers_too(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = bake(capsys, models, "m", "--json", "--oci", models.parent / "oci", "--platform", "linux/riscv64",
                     "--annotation", "org.opencontainers.image.licenses=mit")  # fmt: skip
    (document,) = json.loads(out)
    (image,) = Layout.open(models.parent / "oci").images()
    assert document["layer_digest"] == image.manifest.layers[0].digest
    assert (image.platform, image.annotations["org.opencontainers.image.licenses"]) == ("linux/riscv64", "mit")


def test_an_annotation_without_a_value_is_wrong_use(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = bake(capsys, models, "--oci", "x", "--annotation", "title")
    assert (code, err.splitlines()[-1]) == (
        2, 'prebake bake: error: argument --annotation: "title" is not of the form KEY=VALUE'
    )  # fmt: skip


def test_everything_that_is_not_locked_is_listed_with_its_command(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock(capsys, models)
    third = LINEAR.replace("models.m]", "models.xyz]")
    declare(models.parent, TWO.replace('"path:c"', '"path:./c"', 1) + third)
    code, out, err = bake(capsys, models, "--locked")
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        'prebake: error: models.lock: models.m.source: locked "path:c", but models.toml has "path:./c": '
        "run `prebake lock m`",
        "models.lock: models.other: no result is recorded: run `prebake bake --record other`",
        'models.lock: does not have "xyz": run `prebake lock xyz`',
    ]
    assert not (models.parent / "out").exists()


def test_changed_options_and_versions_are_listed_before_anything_is_baked(
    models: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded(capsys, models)
    declare(models.parent, TWO + "retries = 2\n")
    monkeypatch.setattr("prebake_build.declared.locked.version", lambda name: {"torch": "9.9"}.get(name, "0.1.0"))
    before = tree(models.parent / "out")
    code, _, err = bake(capsys, models, "--locked")
    torch_ = torch.__version__.partition("+")[0]
    assert code == 2
    assert [line for line in err.splitlines() if "other" in line] == [
        "models.lock: models.other.baked.options.retries: locked none, now 2: run `prebake bake --record other`",
        f"models.lock: models.other.baked.requires.torch: locked {torch_}, installed 9.9: run `pip install "
        f"'torch=={torch_}'`, or `prebake bake --record` to take this version on",
    ]
    assert tree(models.parent / "out") == before


def test_another_result_is_refused_for_every_model_and_the_old_folders_stay(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded(capsys, models)
    path = models.with_suffix(".lock")
    digests = [model.baked.set_digest for model in Lock.read(path).models.values() if model.baked]
    path.write_text(path.read_text().replace(digests[0], "sha256:" + "7" * 64))
    before = [tree(models.parent / "out" / name) for name in ("m", "other")]
    for force in ((), ("--force",)):
        code, out, err = bake(capsys, models, "--locked", *force)
        assert (code, out) == (1, "")
        assert err[err.index("prebake: error") :].splitlines() == [
            "prebake: error: models.m: the bake gave something else than models.lock says:",
            f'  set_digest: locked "sha256:{"7" * 64}", now "{digests[0]}"',
            "The previous folder is unchanged. `prebake bake --record m` takes this result on.",
            "models.other: the bake gave something else than models.lock says:",
            f'  set_digest: locked "sha256:{"7" * 64}", now "{digests[1]}"',
            "The previous folder is unchanged. `prebake bake --record other` takes this result on.",
        ]
        assert [tree(models.parent / "out" / name) for name in names(models.parent / "out")] == before


def test_a_layer_that_differs_is_refused_though_the_files_are_the_same(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = recorded(capsys, models).models["m"].baked.layer_digest
    path = models.with_suffix(".lock")
    path.write_text(path.read_text().replace(digest, "sha256:" + "7" * 64))
    code, _, err = bake(capsys, models, "m", "--locked")
    assert (code, f'  layer_digest: locked "sha256:{"7" * 64}", now "{digest}"\n' in err) == (1, True)


def test_locked_needs_a_lock_and_does_not_record(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = bake(capsys, models, "--locked")
    assert (code, err) == (
        2, f"prebake: error: {models.with_suffix('.lock')}: there is no lock: run `prebake lock`, then "
        "`prebake bake --record`\n"
    )  # fmt: skip
    assert bake(capsys, models, "--locked", "--record")[0] == 2
    assert "cache" not in names(models.parent)


def test_a_lock_of_an_older_prebake_without_options_is_read(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock_ = recorded(capsys, models)
    path = models.with_suffix(".lock")
    text = path.read_text()
    for table in ("options", "requires"):
        for name in lock_.models:
            start = text.index(f"[models.{name}.baked.{table}]")
            end = text.find("\n\n", start)
            text = text[:start] + (text[end + 2 :] if end >= 0 else "")
    path.write_text(text)
    assert Lock.read(path).models["m"].baked is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--tag", "Bad Tag"],
      'argument --tag: "Bad Tag" is no tag, such as "v2", and no name of an image, such as '
      '"registry.example/weights:v2"'),
     (["--platform", "nonsense"],
      'argument --platform: "nonsense" is no platform of the form OS/ARCH, such as "linux/arm64"')],
)  # fmt: skip
def test_a_name_and_a_platform_of_an_image_are_checked(
    models: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    code, _, err = bake(capsys, models, "--oci", models.parent / "oci", *arguments)
    assert (code, err.endswith(f"error: {message}\n")) == (2, True)
    assert not (models.parent / "oci").exists()


def test_what_describes_an_image_needs_one(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bake(capsys, models, "--platform", "linux/arm64") == (
        2, "", "prebake: error: --platform: describes an image, and there is none without --oci DIR\n"
    )  # fmt: skip


def test_a_place_that_is_no_layout_is_refused_before_anything_is_baked(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = models.parent / "c"
    assert bake(capsys, models, "--oci", place) == (
        2, "",
        f"prebake: error: {place}: exists and is not an OCI image layout: move it, or name another folder\n",
    )  # fmt: skip
