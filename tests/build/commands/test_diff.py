"""`prebake diff` names every difference of two baked trees or layouts, down to tensors, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.baked_folders import baked_folder
from helpers.baking import flip_byte
from helpers.commands import run_command
from helpers.oci_images import LayerOf, write_image
from prebake.baked.model import BakedModel
from prebake_build.commands import diff
from prebake_build.images.opened import opened_models
from prebake_build.images.pack import Packing, pack


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    return run_command(capsys, diff, "diff", *arguments)


@pytest.fixture
def models(tmp_path: Path) -> list[BakedModel]:
    return [baked_folder(tmp_path / "a", "caption"), baked_folder(tmp_path / "a", "ocr", {"w": [300, 100]})]


def test_the_same_models_have_no_difference(
    models: list[BakedModel], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    baked_folder(tmp_path / "b", "caption")
    baked_folder(tmp_path / "b", "ocr", {"w": [300, 100]})
    assert run(capsys, tmp_path / "a", tmp_path / "b") == (
        0, "", f"{tmp_path}/a and {tmp_path}/b hold the same models.\n"
    )  # fmt: skip


@pytest.mark.parametrize("compression", ["uncompressed", "zstd"])
def test_a_folder_and_its_image_have_no_difference(
    models: list[BakedModel], tmp_path: Path, capsys: pytest.CaptureFixture[str], compression: str
) -> None:
    if compression == "zstd":
        pytest.importorskip("zstandard", reason="zstd is optional: pip install zstandard")
    pack(models, tmp_path / "oci", Packing(compression=compression))
    code, out, _ = run(capsys, tmp_path / "a", tmp_path / "oci")
    assert (code, out) == (0, "")


def test_every_kind_of_difference_is_named(
    models: list[BakedModel], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = baked_folder(
        tmp_path / "b", "caption", {"a.weight": [16, 16], "c": [4]}, files={"vocab.txt": b"x"}, licence=None,
        revision="2" * 40, converter={"prebake-build": "0.2.0", "recipe": "sha256:" + "5" * 64},
    )  # fmt: skip
    weights = {baked.name: {file.path: file for file in baked.manifest.files} for baked in (models[0], other)}
    before, after = models[0].manifest.files[1], other.manifest.files[1]
    assert weights and before.path == after.path == "model.safetensors"
    code, out, err = run(capsys, tmp_path / "a", tmp_path / "b")
    assert (code, err) == (1, "")
    assert out.splitlines() == [
        "caption",
        "  - source  licence  mit",
        f"  ~ source  revision  commit:{'1' * 40} -> commit:{'2' * 40}",
        "  ~ version  prebake-build  0.1.0 -> 0.2.0",
        f"  ~ file  model.safetensors  {before.size:,} bytes sha256:{before.sha256[:12]} -> "
        f"{after.size:,} bytes sha256:{after.sha256[:12]}",
        "  + file  vocab.txt  1 bytes sha256:2d711642b726",
        "  ~ tensor  a.weight  F32 [16, 32] -> F32 [16, 16]",
        "  - tensor  b.bias  F32 [8]",
        "  + tensor  c  F32 [4]",
        "ocr",
        f"  - model  ocr  {models[1].manifest.set_digest}",
    ]


def test_a_changed_value_is_found_in_the_tensor_that_has_it_in_folders_and_images(
    models: list[BakedModel], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = baked_folder(tmp_path / "b", "caption", fill=b"\2")
    pack([changed], tmp_path / "oci", Packing())
    for place in (tmp_path / "b", tmp_path / "oci"):
        code, out, _ = run(capsys, tmp_path / "a" / "caption", place, "--json")
        changes = [(change["what"], change["name"]) for change in json.loads(out)]
        assert (code, changes) == (1, [("file", "model.safetensors"), ("values", "a.weight"), ("values", "b.bias")])
        code, out, _ = run(capsys, tmp_path / "a" / "caption", place, "--quick")
        assert (code, out.count("\n")) == (1, 2)


def test_another_dtype_is_one_line_a_tensor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    baked_folder(tmp_path / "a", "m", {"w": [8]})
    baked_folder(tmp_path / "b", "m", {"w": [8]}, dtype="BF16")
    _, out, _ = run(capsys, tmp_path / "a", tmp_path / "b")
    assert "  ~ tensor  w  F32 [8] -> BF16 [8]\n" in out
    assert "values" not in out


def test_names_of_tensors_do_not_reach_the_terminal_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    baked_folder(tmp_path / "a", "caption")
    baked_folder(tmp_path / "b", "caption", {"w\x1b[2J": [100]})
    out = run(capsys, tmp_path / "a", tmp_path / "b")[1]
    assert r"  + tensor  w\x1b[2J  F32 [100]" in out.splitlines()


def test_no_models_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_image(tmp_path / "oci", LayerOf({"manifest.json": b"{}", "a": b"b"}))
    baked_folder(tmp_path / "a", "m")
    assert run(capsys, tmp_path / "a", tmp_path / "oci", "--platform", "linux/amd64") == (
        2, "", f"prebake: error: {tmp_path}/oci: this image holds no baked model\n"
    )  # fmt: skip
    code, _, err = run(capsys, tmp_path / "nothing", tmp_path / "a")
    assert (code, err.startswith(f"prebake: error: {tmp_path}/nothing: there is no such folder")) == (2, True)


def test_a_manifest_in_an_image_is_checked_like_one_in_a_folder(
    models: list[BakedModel], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = models[0].manifest.text.replace('"size": 2\n', '"size": -2\n')
    write_image(tmp_path / "oci", LayerOf({"models/caption/manifest.json": text.encode()}))
    code, _, err = run(capsys, tmp_path / "a", tmp_path / "oci", "--platform", "linux/amd64")
    assert (code, err) == (
        1, f"prebake: error: {tmp_path}/oci:/models/caption/manifest.json: files[0].size: -2 is negative\n"
    )  # fmt: skip


def test_a_file_that_is_missing_in_an_image_is_said(models: list[BakedModel], tmp_path: Path) -> None:
    write_image(tmp_path / "oci", LayerOf({"models/caption/manifest.json": models[0].manifest.text.encode()}))
    with (
        opened_models(f"{tmp_path}/oci", wanted="linux/amd64") as found,
        pytest.raises(Exception, match=r"oci:/models/caption/model\.safetensors: is missing$"),
    ):
        found["caption"].tensors()


def test_a_layout_with_a_changed_layer_is_refused_unless_values_are_left_out(
    models: list[BakedModel], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack(models, tmp_path / "oci", Packing())
    flip_byte(max((tmp_path / "oci" / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size))
    code, out, err = run(capsys, tmp_path / "oci", tmp_path / "oci")
    assert (code, out) == (1, "")
    assert err.startswith(f"prebake: error: {tmp_path}/oci: layers were changed:\n  blob sha256:")
    assert run(capsys, tmp_path / "oci", tmp_path / "oci", "--quick")[0] == 0


def test_half_a_layout_is_no_folder_of_models(
    models: list[BakedModel], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack(models, tmp_path / "oci", Packing())
    (tmp_path / "oci" / "index.json").unlink()
    assert run(capsys, tmp_path / "oci", tmp_path / "oci") == (
        1, "",
        f"prebake: error: {tmp_path}/oci: is a part of an OCI image layout: index.json is missing: "
        "copy the layout again, or write it anew\n",
    )  # fmt: skip
