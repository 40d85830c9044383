"""The generator that BuildKit runs lists models, their files and checkpoints, and packages, as SPDX 2.3."""

from __future__ import annotations

import json
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

import pytest

from helpers.baked_folders import baked_folder
from prebake_build.trust.spdx import PREDICATE, document, main, manifests_in, packages_in, source_time

COMMIT = "1" * 40


def package(root: Path, name: str, licence: str | None = None) -> None:
    folder = root / "opt/prebake/lib/python3.11/site-packages" / f"{name}-1.0.dist-info"
    folder.mkdir(parents=True)
    expression = f"License-Expression: {licence}\n" if licence else ""
    (folder / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: 1.0\n{expression}\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    baked_folder(tmp_path / "models", "caption", licence="apache-2.0", revision=COMMIT)
    package(tmp_path, "Some_Package", "MIT")
    package(tmp_path, "other")
    return tmp_path


def described(root: Path, packages: list[Distribution] | None = None) -> tuple[Any, dict[str, Any]]:
    found = document(manifests_in(root), packages_in(root) if packages is None else packages,
                     created=source_time({}))  # fmt: skip
    return found, {entry["name"]: entry for entry in found["packages"]}


def test_a_model_is_made_from_its_checkpoint_and_contains_its_files(root: Path) -> None:
    (manifest,) = manifests_in(root)
    found, packages = described(root)
    model = packages["caption"]
    assert (model["versionInfo"], model["licenseDeclared"]) == (manifest.set_digest, "Apache-2.0")
    names = {entry["SPDXID"]: name for name, entry in packages.items()}
    relations = [
        (names.get(r["spdxElementId"], r["spdxElementId"]), r["relationshipType"], names[r["relatedSpdxElement"]])
        for r in found["relationships"]
    ]
    checkpoint = f"caption checkpoint {manifest.source.uri}"
    assert relations == [
        ("SPDXRef-DOCUMENT", "DESCRIBES", "caption"), ("caption", "GENERATED_FROM", checkpoint),
        *(("caption", "CONTAINS", f"caption/{file.path}") for file in manifest.files),
        ("SPDXRef-DOCUMENT", "DESCRIBES", "Some_Package"), ("SPDXRef-DOCUMENT", "DESCRIBES", "other"),
    ]  # fmt: skip
    assert packages[checkpoint]["versionInfo"] == f"commit:{COMMIT}"
    for file in manifest.files:
        assert packages[f"caption/{file.path}"]["checksums"] == [{"algorithm": "SHA256", "checksumValue": file.sha256}]


def test_packages_have_their_address_and_licence(root: Path) -> None:
    _, packages = described(root)
    (reference,) = packages["Some_Package"]["externalRefs"]
    assert (reference["referenceLocator"], packages["Some_Package"]["licenseDeclared"]) == (
        "pkg:pypi/some-package@1.0", "MIT"
    )  # fmt: skip
    assert packages["other"]["licenseDeclared"] == "NOASSERTION"


def test_a_licence_that_spdx_does_not_know_gets_an_identifier_of_its_own(tmp_path: Path) -> None:
    baked_folder(tmp_path / "models", "m", licence="my licence")
    found, packages = described(tmp_path)
    assert packages["m"]["licenseDeclared"] == "LicenseRef-my-licence"
    assert found["hasExtractedLicensingInfos"] == [
        {"licenseId": "LicenseRef-my-licence", "name": "my licence", "extractedText": "The source says: my licence"}
    ]


def test_buildkits_question_is_answered_with_a_statement(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    environment = {"BUILDKIT_SCAN_SOURCE": str(root), "BUILDKIT_SCAN_DESTINATION": str(out),
                   "SOURCE_DATE_EPOCH": "1700000000"}  # fmt: skip
    assert main(environment) == 0
    statement = json.loads((out / f"{root.name}.spdx.json").read_text())
    assert statement["predicateType"] == PREDICATE
    assert statement["predicate"]["creationInfo"]["created"] == "2023-11-14T22:13:20Z"
    assert {"caption", "other"} <= {entry["name"] for entry in statement["predicate"]["packages"]}


def test_outside_of_buildkit_and_with_a_damaged_manifest_it_fails(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main({}) == 2
    assert capsys.readouterr().err == "prebake: error: BUILDKIT_SCAN_SOURCE is not set: BuildKit sets it\n"
    (root / "models" / "caption" / "manifest.json").write_text("{")
    assert main({"BUILDKIT_SCAN_SOURCE": str(root), "BUILDKIT_SCAN_DESTINATION": "."}) == 1
    assert "models/caption/manifest.json" in capsys.readouterr().err
    environment = {"BUILDKIT_SCAN_SOURCE": str(root / "usr"), "BUILDKIT_SCAN_DESTINATION": "."}
    assert main({**environment, "SOURCE_DATE_EPOCH": "x"}) == 2
    assert capsys.readouterr().err == 'prebake: error: SOURCE_DATE_EPOCH: "x" is not a time in seconds since 1970\n'
