"""The view is in the baked tree, or in a temporary folder that only its owner may write to."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from helpers.adopted import COMMIT
from helpers.runtime_fakes import manifest_of, write_manifest
from prebake.adopt import view
from prebake.adopt.catalogue import Catalogue
from prebake.adopt.view import view_folder
from prebake.baked import hub
from prebake.baked.manifest import Source


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model from the hub; temporary views go into `tmp`."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(view, "_PLACES", (str(tmp_path / "tmp"),))
    write_manifest(
        tmp_path / "models", manifest_of("tiny", source=Source(uri="hf:acme/tiny", revision=f"commit:{COMMIT}"))
    )
    return tmp_path / "models"


def folder_of(root: Path) -> Path:
    found = view_folder(Catalogue.read(root), root)
    assert found is not None
    return found


def test_the_tree_s_own_view_is_used(root: Path) -> None:
    (root / ".hub").mkdir()
    hub.write(hub.view_of(Catalogue.read(root).models), root / ".hub", "..")
    assert folder_of(root) == root / ".hub"


@pytest.mark.parametrize("damage", ["none", "link", "ref", "copied as a file"])
def test_else_a_temporary_one_is(root: Path, damage: str, tmp_path: Path) -> None:
    if damage != "none":
        (root / ".hub").mkdir()
        hub.write(hub.view_of(Catalogue.read(root).models), root / ".hub", "..")
        link = root / ".hub" / "models--acme--tiny" / "snapshots" / COMMIT / "model.safetensors"
        ref = root / ".hub" / "models--acme--tiny" / "refs" / "main"
        if damage == "ref":
            ref.write_text("2" * 40)
        else:
            link.unlink()
        if damage.startswith("copied"):
            link.write_text("../../../../tiny/model.safetensors")
    made = folder_of(root)
    assert made.parent == tmp_path / "tmp" and made.stat().st_mode & 0o777 == 0o700
    assert hub.is_complete(hub.view_of(Catalogue.read(root).models), made, root)
    assert folder_of(root) == made
    assert list((tmp_path / "tmp").iterdir()) == [made]


def test_a_folder_that_others_may_write_to_is_not_used(root: Path) -> None:
    made = folder_of(root)
    made.chmod(0o777)
    other = folder_of(root)
    assert other != made and other.name.startswith("prebake-hub-new-")


def test_nothing_writable_gives_none(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view, "_PLACES", ("/nonexistent",))
    assert view_folder(Catalogue.read(root), root) is None


def test_models_of_other_sources_need_no_view(tmp_path: Path) -> None:
    write_manifest(tmp_path, manifest_of("m", source=Source(uri="path:x", revision="sha256:" + "0" * 64)))
    assert view_folder(Catalogue.read(tmp_path), tmp_path) is None


def test_a_tree_s_view_can_be_copied(root: Path, tmp_path: Path) -> None:
    (root / ".hub").mkdir()
    hub.write(hub.view_of(Catalogue.read(root).models), root / ".hub", "..")
    shutil.copytree(root, tmp_path / "copy", symlinks=True)
    shutil.rmtree(root)
    assert folder_of(tmp_path / "copy") == tmp_path / "copy" / ".hub"
    link = tmp_path / "copy" / ".hub" / "models--acme--tiny" / "snapshots" / COMMIT / "model.safetensors"
    assert str(link.readlink()) == "../../../../tiny/model.safetensors"
