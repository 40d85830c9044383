"""What users name as an image or as models: folders, layouts, images of the engine, and what is none of these."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.baked_folders import baked_folder
from prebake.errors import ConfigError, IntegrityError, PrebakeError
from prebake_build.images.opened import opened_image, opened_models
from prebake_build.images.pack import Packing, pack


@pytest.fixture
def oci(tmp_path: Path) -> Path:
    pack([baked_folder(tmp_path / "models", "m")], tmp_path / "oci", Packing())
    return tmp_path / "oci"


def test_models_are_the_same_in_a_root_in_their_folder_and_in_a_layout(oci: Path) -> None:
    found = []
    for place in (oci.parent / "models", oci.parent / "models" / "m", oci):
        with opened_models(str(place)) as models:
            found.append(models["m"].tensor_digests())
    assert found[0] == found[1] == found[2] != {}


@pytest.mark.parametrize("name", ["/nowhere", "./nowhere", "nowhere/"])
def test_a_path_that_leads_nowhere_is_no_image_of_the_engine(name: str) -> None:
    for opened in (opened_image, opened_models):
        with pytest.raises(ConfigError) as caught, opened(name):
            pass
        assert str(caught.value) == f"{name}: there is no such folder"


def test_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("models.toml").touch()
    with pytest.raises(ConfigError) as caught, opened_models("models.toml"):
        pass
    assert str(caught.value) == (
        "models.toml: is no folder (expected an OCI image layout, or the name of an engine's image)"
    )


def test_without_an_engine_a_name_is_said_to_be_no_folder_either(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Any:
        raise PrebakeError("no Docker engine answers at its usual address (x): start one")

    monkeypatch.setattr("prebake_build.images.engine.open_engine", none)
    with pytest.raises(PrebakeError) as caught, opened_models("models.old"):
        pass
    assert str(caught.value) == (
        "models.old: there is no such folder, and no Docker engine answers at its usual address (x): start one"
    )


def test_what_the_engine_says_about_a_name_is_told_without_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    import docker.errors

    def get(name: str) -> Any:
        raise docker.errors.APIError("400 Client Error for http+docker://localhost", explanation="invalid reference")

    client = SimpleNamespace(images=SimpleNamespace(get=get), close=lambda: None)
    monkeypatch.setattr("prebake_build.images.engine.open_engine", lambda: client)
    with pytest.raises(PrebakeError) as caught, opened_image("Bad Name"):
        pass
    assert str(caught.value) == "Bad Name: the engine refuses this image: invalid reference"


def test_the_layers_of_a_layout_are_hashed(oci: Path) -> None:
    layer = max((oci / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    layer.write_bytes(bytes([layer.read_bytes()[0] ^ 1]) + layer.read_bytes()[1:])
    with pytest.raises(IntegrityError, match="layers were changed"), opened_models(str(oci)):
        pass
