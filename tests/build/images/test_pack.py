"""A layout is the same bytes for the same models, whole or not there, and readable by its own reader."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.baked_folders import baked_folder
from helpers.baking import flip_byte, names, tree
from prebake.baked.model import BakedModel
from prebake.errors import ConfigError, IntegrityError, PrebakeError
from prebake_build.images import pack as packing
from prebake_build.images.documents import name_annotations
from prebake_build.images.oci_layout import Layout
from prebake_build.images.pack import Packing, pack


def two(root: Path) -> list[BakedModel]:
    return [baked_folder(root, "caption"), baked_folder(root, "ocr", licence="apache-2.0", fill=b"\2")]


def contents(folder: Path) -> dict[str, str]:
    return {path: digest for path, (_, _, digest) in tree(folder).items()}


def test_the_order_of_the_models_their_place_and_the_time_change_no_byte(tmp_path: Path) -> None:
    first = pack(two(tmp_path / "a"), tmp_path / "1", Packing())
    again = pack(list(reversed(two(tmp_path / "b"))), tmp_path / "elsewhere" / "2", Packing())
    assert first == again
    assert contents(tmp_path / "1") == contents(tmp_path / "elsewhere" / "2")


def test_blobs_are_named_by_their_digest_and_nothing_else_is_there(tmp_path: Path) -> None:
    packed = pack(two(tmp_path / "models"), tmp_path / "oci", Packing())
    assert names(tmp_path) == ["models", "oci"]
    assert names(tmp_path / "oci") == ["blobs", "index.json", "oci-layout"]
    assert (tmp_path / "oci" / "oci-layout").read_text() == '{"imageLayoutVersion":"1.0.0"}'
    blobs = list((tmp_path / "oci" / "blobs" / "sha256").iterdir())
    assert all(blob.name == hashlib.sha256(blob.read_bytes()).hexdigest() for blob in blobs)
    assert len(blobs) == 2 + 2 * 2 + 1  # layers, a configuration and a manifest for each platform, the index
    assert packed.digest.removeprefix("sha256:") in {blob.name for blob in blobs}


def test_both_platforms_share_the_layers(tmp_path: Path) -> None:
    packed = pack(two(tmp_path / "models"), tmp_path / "oci", Packing())
    amd, arm = Layout.open(tmp_path / "oci").images()
    assert (amd.platform, arm.platform) == ("linux/amd64", "linux/arm64")
    assert amd.manifest.layers == arm.manifest.layers
    assert [layer.digest for layer in amd.manifest.layers] == [layer.digest for layer in packed.layers.values()]
    assert amd.config.diff_ids == arm.config.diff_ids


def test_annotations_say_what_is_in_it_and_the_callers_replace_them(tmp_path: Path) -> None:
    mine = {"org.opencontainers.image.title": "Mine", "org.opencontainers.image.vendor": "Acme"}
    pack(two(tmp_path / "models"), tmp_path / "oci", Packing(annotations=mine))
    image = Layout.open(tmp_path / "oci").image(wanted="linux/arm64")
    expected = {
        "dev.prebake.models": "caption,ocr",
        "org.opencontainers.image.description": "Model weights below the models' names: hf:acme/caption, hf:acme/ocr",
        "org.opencontainers.image.licenses": "apache-2.0 AND mit",
        "org.opencontainers.image.title": "Mine",
        "org.opencontainers.image.vendor": "Acme",
    }
    assert image.manifest.annotations == image.config.labels == expected
    digest = BakedModel.open(tmp_path / "models" / "caption").manifest.set_digest
    assert image.manifest.layers[0].annotations == {
        "dev.prebake.model": "caption",
        "dev.prebake.revision": "commit:" + "1" * 40,
        "dev.prebake.set-digest": digest,
        "dev.prebake.source": "hf:acme/caption",
    }
    assert image.config.instruction(0) == f"prebake bake caption # {digest}"


def test_an_existing_layout_is_replaced_whole(tmp_path: Path) -> None:
    pack(two(tmp_path / "models"), tmp_path / "oci", Packing(tag="old"))
    shutil.rmtree(tmp_path / "models")
    packed = pack([baked_folder(tmp_path / "models", "new")], tmp_path / "oci", Packing(tag="v2"))
    images = Layout.open(tmp_path / "oci").images(name="v2")
    assert [layer.digest for layer in images[0].manifest.layers] == [packed.layers["new"].digest]
    assert len(names(tmp_path / "oci" / "blobs" / "sha256")) == 1 + 2 * 2 + 1
    assert names(tmp_path) == ["models", "oci"]


def test_an_empty_folder_becomes_a_layout_and_a_full_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "text").touch()
    models = two(tmp_path / "models")
    pack(models, tmp_path / "empty", Packing())
    with pytest.raises(ConfigError) as caught:
        pack(models, tmp_path / "docs", Packing())
    assert str(caught.value) == (
        f"{tmp_path}/docs: exists and is not an OCI image layout: move it, or name another folder"
    )
    assert names(tmp_path / "docs") == ["text"]


def test_a_damaged_model_leaves_the_old_layout(tmp_path: Path) -> None:
    pack(two(tmp_path / "models"), tmp_path / "oci", Packing())
    before = contents(tmp_path / "oci")
    models = two(tmp_path / "models")
    (models[1].folder / "config.json").unlink()
    with pytest.raises(IntegrityError):
        pack(models, tmp_path / "oci", Packing())
    assert contents(tmp_path / "oci") == before
    assert names(tmp_path) == ["models", "oci"]


def test_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        pack([], tmp_path / "oci", Packing())
    assert str(caught.value) == f"{tmp_path}/oci: there is no model to write into an image"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount")
def test_too_little_space_is_said_before_anything_is_written(
    tmp_path: Path, small_disk: Callable[[Path, str], Path]
) -> None:
    disk = small_disk(tmp_path / "disk", "256k")
    with pytest.raises(PrebakeError) as caught:
        pack(two(tmp_path / "models"), disk / "oci", Packing())
    assert str(caught.value) == f"{disk}/oci: the layout takes 33.6 MB at most, and 262 kB are free: free some space"
    assert names(disk) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount")
def test_a_disk_that_fills_up_meanwhile_leaves_nothing(
    tmp_path: Path, small_disk: Callable[[Path, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "_MARGIN", 0)
    disk = small_disk(tmp_path / "disk", "256k")
    model = baked_folder(tmp_path / "models", "m", {"w": [62_000]})
    with pytest.raises(PrebakeError) as caught:
        pack([model], disk / "oci", Packing())
    assert (
        str(caught.value)
        == f"{disk}/oci: cannot write the layout: No space left on device: free some space, or name another folder."
    )
    assert names(disk) == []


def test_what_a_killed_process_left_is_cleared_and_a_layout_it_moved_away_put_back(tmp_path: Path) -> None:
    models = two(tmp_path / "models")
    pack(models, tmp_path / "oci", Packing(tag="old"))
    work = tmp_path / ".prebake-oci-oci.abc"
    work.mkdir()
    (tmp_path / "oci").rename(work / "oci~")
    models[0].folder.joinpath("config.json").unlink()
    with pytest.raises(IntegrityError):
        pack(models, tmp_path / "oci", Packing())
    assert names(tmp_path) == ["models", "oci"]
    assert Layout.open(tmp_path / "oci").images(name="old")


# --- reading -----------------------------------------------------------------------------------------------------


@pytest.fixture
def oci(tmp_path: Path) -> Path:
    pack(two(tmp_path / "models"), tmp_path / "oci", Packing())
    return tmp_path / "oci"


def largest(oci: Path) -> Path:
    return max((oci / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)


def test_a_changed_layer_is_found(oci: Path) -> None:
    flip_byte(largest(oci))
    layout = Layout.open(oci)
    with pytest.raises(IntegrityError) as caught:
        layout.check_layers(layout.images())
    assert str(caught.value).startswith(
        f"{oci}: layers were changed:\n  blob sha256:{largest(oci).name} has the digest "
    )
    assert str(caught.value).endswith("\nCopy the layout again, or write it anew.")


@pytest.mark.parametrize("name", ["oci-layout", "index.json"])
def test_a_layout_that_lacks_its_index_or_mark_is_half_of_one(oci: Path, name: str) -> None:
    (oci / name).unlink()
    with pytest.raises(IntegrityError) as caught:
        Layout.open(oci)
    assert str(caught.value) == (
        f"{oci}: is a part of an OCI image layout: {name} is missing: copy the layout again, or write it anew"
    )


def test_a_half_written_layout_is_said(oci: Path) -> None:
    blob = largest(oci)
    blob.write_bytes(blob.read_bytes()[:-512])
    with pytest.raises(IntegrityError) as caught:
        Layout.open(oci).image().layer(0 if blob.name in Layout.open(oci).image().manifest.layers[0].digest else 1)
    assert f"blob sha256:{blob.name}: expected " in str(caught.value)
    blob.unlink()
    layout = Layout.open(oci)
    with pytest.raises(IntegrityError, match="is missing: copy the layout again, or write it anew"):
        layout.check_layers(layout.images())


def test_an_index_may_name_platforms_that_are_not_there(oci: Path) -> None:
    """An engine that pulled one platform saves it below the index of all."""
    layout = Layout.open(oci)
    amd, arm = layout.images()
    (oci / "blobs" / "sha256" / arm.digest.removeprefix("sha256:")).unlink()
    assert [image.digest for image in layout.images()] == [amd.digest]
    (oci / "blobs" / "sha256" / amd.digest.removeprefix("sha256:")).unlink()
    with pytest.raises(IntegrityError) as caught:
        layout.images()
    assert str(caught.value) == f"{oci}: blob {amd.digest} is missing: copy the layout again, or write it anew"


def test_a_changed_document_is_found(oci: Path) -> None:
    index = json.loads((oci / "index.json").read_text())
    blob = oci / "blobs" / "sha256" / index["manifests"][0]["digest"].removeprefix("sha256:")
    blob.write_text(blob.read_text().replace("amd64", "amd46"))
    with pytest.raises(IntegrityError) as caught:
        Layout.open(oci).images()
    assert f"{oci}: blob sha256:{blob.name} has the digest sha256:" in str(caught.value)
    assert str(caught.value).endswith(": copy the layout again, or write it anew")


def test_no_layout_an_unknown_tag_and_an_unknown_platform_are_said(oci: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        Layout.open(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: is not an OCI image layout (expected the files oci-layout and index.json in it)"
    )
    with pytest.raises(ConfigError) as caught:
        Layout.open(oci).image(name="latets")
    assert str(caught.value) == f'{oci}: holds no image named "latets" (it has latest): did you mean "latest"?'
    with pytest.raises(ConfigError) as caught:
        Layout.open(oci).image(wanted="windows/amd64")
    assert str(caught.value) == f"{oci}: holds no image for windows/amd64 (it has: linux/amd64, linux/arm64)"


def test_a_layout_of_another_version_is_refused(oci: Path) -> None:
    (oci / "oci-layout").write_text('{"imageLayoutVersion":"2.0.0"}')
    with pytest.raises(PrebakeError) as caught:
        Layout.open(oci)
    assert str(caught.value) == (
        f'{oci}/oci-layout: imageLayoutVersion: "2.0.0" is not 1.0.0, which this Prebake reads'
    )


@pytest.mark.parametrize(
    ("name", "tag", "image"),
    [("v2", "v2", None),
     ("weights:v2", "v2", "docker.io/library/weights:v2"),
     ("acme/weights", "latest", "docker.io/acme/weights:latest"),
     ("registry.example/acme/weights:v2", "v2", "registry.example/acme/weights:v2"),
     ("localhost:5000/weights", "latest", "localhost:5000/weights:latest")],
)  # fmt: skip
def test_a_whole_name_is_split_into_what_engines_ask_for(name: str, tag: str, image: str | None) -> None:
    expected = {"org.opencontainers.image.ref.name": tag}
    assert name_annotations(name) == (expected | {"io.containerd.image.name": image} if image else expected)
