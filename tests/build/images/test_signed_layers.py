"""The signature of models in their image: a layer of its own, which is written only if it fits them."""

from __future__ import annotations

import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.baked_folders import baked_folder
from helpers.keys import key_pair
from prebake.baked.model import find_models
from prebake.errors import ConfigError, IntegrityError
from prebake_build.images.checks.data import rules
from prebake_build.images.oci_layout import Layout
from prebake_build.images.pack import Packing, pack
from prebake_build.trust.signing import sign

pytest.importorskip("model_signing", reason="signing is optional: pip install 'prebake-build[trust]'")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two signed models."""
    for name in ("caption", "ocr"):
        baked_folder(tmp_path / "models", name)
    sign(tmp_path / "models", find_models(tmp_path / "models"), key_pair(tmp_path)[0], None)
    return tmp_path / "models"


def test_the_signature_is_a_layer_of_its_own_and_the_models_layers_stay_the_same(root: Path, tmp_path: Path) -> None:
    models = find_models(root)
    signed = pack(models, tmp_path / "signed", Packing())
    (root / "prebake.sig").rename(tmp_path / "kept.sig")
    assert pack(models, tmp_path / "unsigned", Packing()).layers == signed.layers
    image = Layout.open(tmp_path / "signed").image()
    assert [layer.digest for layer in image.manifest.layers[:2]] == [layer.digest for layer in signed.layers.values()]
    assert (len(image.manifest.layers), image.config.instruction(2)) == (3, "prebake sign")
    with tarfile.open(image.layer(2)) as archive:
        assert archive.getnames() == ["models", "models/prebake.sig"]
        file = archive.extractfile("models/prebake.sig")
        assert file and file.read() == (tmp_path / "kept.sig").read_bytes()


def test_its_layer_counts(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prebake_build.images.pack.rules", lambda: replace(rules(), most_layers=2))
    with pytest.raises(ConfigError, match="an image of 3 layers, and overlay file systems mount at most 2: "):
        pack(find_models(root), tmp_path / "oci", Packing())
    (root / "prebake.sig").unlink()
    pack(find_models(root), tmp_path / "oci", Packing())


def test_a_signature_of_other_models_is_not_written_into_an_image(root: Path, tmp_path: Path) -> None:
    path = root / "ocr" / "manifest.json"
    path.write_text(path.read_text().replace("mit", "isc"))
    with pytest.raises(IntegrityError) as caught:
        pack(find_models(root), tmp_path / "oci", Packing())
    assert str(caught.value).startswith(
        f"{root}/prebake.sig: is not the signature of these models:\n  ocr/manifest.json: "
    )
    assert not (tmp_path / "oci").exists()
