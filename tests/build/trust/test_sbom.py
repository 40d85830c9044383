"""The bill of materials names licence, source, hashes and lineage, is valid CycloneDX, and the same every time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.baked_folders import baked_folder
from helpers.commands import run_command
from prebake.baked.manifest import Manifest
from prebake.errors import ConfigError
from prebake_build.commands import sbom as command
from prebake_build.images.pack import Packing, pack
from prebake_build.trust.sbom import bill_of_materials

pytest.importorskip("cyclonedx.validation.json", reason="an SBOM is optional: pip install 'prebake-build[trust]'")


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    return run_command(capsys, command, "sbom", *arguments)


@pytest.fixture
def manifests(tmp_path: Path) -> list[Manifest]:
    return [baked_folder(tmp_path / "models", "ocr", licence=None).manifest,
            baked_folder(tmp_path / "models", "caption", licence="apache-2.0").manifest]  # fmt: skip


def test_a_model_has_its_licence_files_and_what_it_was_made_from(manifests: list[Manifest]) -> None:
    document = json.loads(bill_of_materials(manifests))
    caption, ocr = document["components"]
    manifest = manifests[1]
    assert (caption["type"], caption["name"], caption["version"]) == (
        "machine-learning-model", "caption", manifest.set_digest
    )  # fmt: skip
    assert caption["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    assert "licenses" not in ocr
    assert {file["name"]: file["hashes"][0]["content"] for file in caption["components"]} == {
        file.path: file.sha256 for file in manifest.files
    }
    (ancestor,) = caption["pedigree"]["ancestors"]
    assert (ancestor["name"], ancestor["version"], ancestor["purl"]) == (
        "hf:acme/caption", "commit:" + "1" * 40, "pkg:huggingface/acme/caption@" + "1" * 40
    )  # fmt: skip
    assert caption["modelCard"]["modelParameters"] == {
        "architectureFamily": "transformers", "modelArchitecture": "BertModel"
    }  # fmt: skip
    assert "prebake-build 0.1.0" in caption["pedigree"]["notes"]


def test_it_is_the_same_for_the_same_models_in_any_order_and_their_image(
    manifests: list[Manifest], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = bill_of_materials(manifests)
    assert bill_of_materials(list(reversed(manifests))) == text
    from prebake.baked.model import find_models

    pack(find_models(tmp_path / "models"), tmp_path / "oci", Packing())
    assert run(capsys, tmp_path / "oci") == (0, text, "")


def test_another_model_has_another_serial_number(manifests: list[Manifest]) -> None:
    numbers = {json.loads(bill_of_materials(some))["serialNumber"] for some in (manifests, manifests[:1])}
    assert len(numbers) == 2


def test_the_time_is_that_of_the_source(manifests: list[Manifest], monkeypatch: pytest.MonkeyPatch) -> None:
    def time() -> Any:
        return json.loads(bill_of_materials(manifests))["metadata"]["timestamp"]

    assert time() == "1970-01-01T00:00:00+00:00"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert time() == "2023-11-14T22:13:20+00:00"
    for wrong in ("yesterday", "99999999999999"):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", wrong)
        with pytest.raises(ConfigError) as caught:
            time()
        assert str(caught.value) == f'SOURCE_DATE_EPOCH: "{wrong}" is not a time in seconds since 1970'


def test_it_is_written_whole(manifests: list[Manifest], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "models.cdx.json"
    assert run(capsys, tmp_path / "models", "--output", path) == (0, "", f"Wrote {path}.\n")
    assert path.read_text() == bill_of_materials(manifests)
    code, _, err = run(capsys, tmp_path / "models", "--output", tmp_path / "no" / "x.json")
    assert (code, err) == (2, f"prebake: error: {tmp_path}/no/x.json: cannot be written: No such file or directory\n")


def test_a_licence_that_is_no_identifier_is_kept_as_a_name(tmp_path: Path) -> None:
    manifest = baked_folder(tmp_path, "m", licence="other-community-licence").manifest
    (component,) = json.loads(bill_of_materials([manifest]))["components"]
    assert component["licenses"][0]["license"]["name"] == "other-community-licence"


def test_without_its_library_it_says_what_to_install(
    manifests: list[Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cyclonedx.output", None)
    with pytest.raises(ConfigError) as caught:
        bill_of_materials(manifests)
    assert str(caught.value) == (
        "the bill of materials needs cyclonedx-python-lib (cyclonedx.output is missing): "
        "pip install 'prebake-build[trust]'"
    )
