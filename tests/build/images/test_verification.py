"""`verify` of an OCI image layout: the models that a container sees, file by file, and the signature beside them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.baked_folders import baked_folder
from helpers.baking import prebake
from helpers.keys import key_pair
from helpers.oci_images import LayerOf, Node, write_image
from prebake.baked.model import find_models
from prebake_build.images.pack import Packing, pack
from prebake_build.trust.signing import sign

Files = dict[str, "bytes | Node"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("caption", "ocr"):
        baked_folder(tmp_path / "models", name)
    return tmp_path / "models"


def files(root: Path) -> Files:
    """What a layer has for the models below `root`."""
    return {f"models/{path.relative_to(root)}": path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def findings(capsys: pytest.CaptureFixture[str], oci: Path, *options: object) -> list[str]:
    code, out, err = prebake(capsys, "verify", oci, *options)
    assert code == ("differs" in out)
    return err.splitlines()


def test_what_was_packed_is_as_promised(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = find_models(root)
    pack(models, tmp_path / "oci", Packing())
    lines = "".join(f"{baked.name}  {baked.manifest.set_digest}  as promised\n" for baked in models)
    assert prebake(capsys, "verify", tmp_path / "oci") == (0, lines, "")
    assert prebake(capsys, "verify", tmp_path / "oci", "--quick", "--platform", "linux/arm64") == (0, lines, "")
    code, out, _ = prebake(capsys, "verify", tmp_path / "oci", "--json")
    assert (code, [model["name"] for model in json.loads(out)]) == (0, ["caption", "ocr"])


def test_files_are_held_against_the_manifest_though_the_layers_have_their_digests(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = files(root)
    weights = bytes(there["models/ocr/model.safetensors"])  # type: ignore[arg-type]
    there["models/ocr/model.safetensors"] = weights[:-1] + bytes([weights[-1] ^ 1])
    there["models/ocr/extra.py"] = b"print()"
    there["models/caption/model.safetensors"] = Node(target="/etc/passwd")
    oci = write_image(tmp_path / "oci", LayerOf(there))
    caption, changed, extra = findings(capsys, oci)[0:1], *findings(capsys, oci)[-2:]
    assert caption == [f"prebake: {oci}:/models/caption: model.safetensors: missing"]
    assert changed.startswith(f"prebake: {oci}:/models/ocr: model.safetensors: expected sha256 ")
    assert extra == f"prebake: {oci}:/models/ocr: extra.py: not listed"
    there["models/ocr/model.safetensors"] = weights[:-1]
    short = findings(capsys, write_image(tmp_path / "short", LayerOf(there)), "--quick")
    assert f"model.safetensors: expected {len(weights):,} bytes, found {len(weights) - 1:,}" in short[2]


def test_what_a_later_layer_deletes_or_replaces_counts(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whiteout = LayerOf({"models/.wh.caption": b"", "models/ocr/config.json": b'{"a": 1}'})
    oci = write_image(tmp_path / "oci", LayerOf(files(root)), whiteout)
    (config,) = findings(capsys, oci)
    assert config.startswith(f"prebake: {oci}:/models/ocr: config.json: expected ")
    code, out, _ = prebake(capsys, "diff", root, oci)
    assert (code, out.splitlines()[:2]) == (1, ["caption", f"  - model  caption  {digest(root / 'caption')}"])


def digest(folder: Path) -> str:
    return str(json.loads((folder / "manifest.json").read_text())["set_digest"])


def test_no_model_hides_behind_the_name_of_another(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = files(root)
    moved = {path.replace("models/ocr/", "models/text/"): content for path, content in there.items()}
    oci = write_image(tmp_path / "moved", LayerOf(moved))
    assert findings(capsys, oci) == [f'prebake: {oci}:/models/text: its manifest names another model, "ocr"']
    both = write_image(tmp_path / "both", LayerOf(moved | there))
    code, _, err = prebake(capsys, "verify", both)
    assert (code, err) == (1, f'prebake: error: {both}:/models/ocr: {both}:/models/text is called "ocr" too\n')


def test_the_signature_is_checked_with_the_key(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("model_signing", reason="signing is optional: pip install 'prebake-build[trust]'")
    key = key_pair(tmp_path)[1]
    oci = tmp_path / "oci"
    pack(find_models(root), oci, Packing())
    assert findings(capsys, oci, "--key", key) == [
        f"prebake: {oci}:/models/prebake.sig: there is no such file: the models are not signed (prebake sign)"
    ]
    sign(root, find_models(root), key.with_suffix(".pem"), None)
    pack(find_models(root), oci, Packing())
    code, out, err = prebake(capsys, "verify", oci, "--key", key)
    assert (code, out.splitlines()[-1], err) == (0, "prebake.sig  -  as promised", "")
    (tmp_path / "other").mkdir()
    other = key_pair(tmp_path / "other")[1]
    assert findings(capsys, oci, "--key", other) == [
        f"prebake: {oci}:/models/prebake.sig: was not made with the private key of {other}, or was changed afterwards: "
        "name the key that signed these models, or pull them again"
    ]
    there = files(root)
    deleted = write_image(tmp_path / "deleted", LayerOf(there), LayerOf({"models/.wh.ocr": b""}))
    assert findings(capsys, deleted, "--key", key) == [
        f"prebake: {deleted}:/models/prebake.sig: does not fit the models:",
        "  ocr/manifest.json: was signed, but is not there",
    ]
    elsewhere = {path.replace("models/ocr", "other/ocr"): data for path, data in there.items()}
    split = write_image(tmp_path / "split", LayerOf(elsewhere))
    assert findings(capsys, split, "--key", key) == [
        f"prebake: {split}:/models: other models are in /other: no signature covers both folders"
    ]
