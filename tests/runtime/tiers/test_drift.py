"""A package whose version differs from the bake's is said once, with the way out."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from helpers.runtime_fakes import bake_module, change_manifest
from prebake import load
from prebake.baked.model import BakedModel
from prebake.tiers.drift import drift

VERSION = torch.__version__.partition("+")[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made, _ = bake_module(tmp_path / "models", "net", "helpers.runtime_fakes:plain")
    return made


def said(folder: Path, found: str, package: str, wanted: str) -> str:
    return (
        f"{folder.name}: baked with {package} {wanted}, but {found} is installed: starts are slower: bake it again "
        f"with the installed version, or install {package}=={wanted}"
    )


def test_the_versions_of_the_bake_are_no_drift(folder: Path) -> None:
    change_manifest(folder, requires={"torch": VERSION})
    assert drift(BakedModel.open(folder)) == []


def test_every_package_that_differs_is_named(folder: Path) -> None:
    change_manifest(folder, requires={"torch": "1.0", "no-such-package": "3"})
    assert drift(BakedModel.open(folder)) == [
        said(folder, "none", "no-such-package", "3"), said(folder, VERSION, "torch", "1.0")
    ]  # fmt: skip


def test_a_load_warns_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    change_manifest(folder, requires={"torch": "1.1"})
    with caplog.at_level(logging.WARNING, "prebake"):
        for _ in range(2):
            assert load(folder, allow=["helpers"]).tier == "mapped"
    assert [record.getMessage() for record in caplog.records] == [said(folder, VERSION, "torch", "1.1")]
