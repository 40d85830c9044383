"""`verify="full"` finds what sizes and headers cannot: a changed byte of the right file size."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from prebake import Models
from prebake.baked.integrity import check_hashes
from prebake.baked.manifest import Manifest
from prebake.errors import ConfigError, IntegrityError
from prebake.telemetry import timeline


@pytest.fixture
def root(tiny_models: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_models / "caption", tmp_path / "models" / "caption")
    return tmp_path / "models"


def change_one_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_an_honest_folder_passes_and_the_timeline_says_that_it_was_hashed(root: Path) -> None:
    before = len(timeline.process.spans)
    assert Models(root, verify="full")["caption"].tier == "mapped"
    assert ("verify", "caption") in [(span.name, span.model) for span in timeline.process.spans[before:]]


def test_a_changed_byte_is_found_and_named_with_both_hashes(root: Path) -> None:
    folder = root / "caption"
    change_one_byte(folder / "model.safetensors")
    (expected,) = [file.sha256 for file in Manifest.read(folder).files if file.path == "model.safetensors"]
    with pytest.raises(IntegrityError) as error:
        Models(root, verify="full")["caption"]
    lines = str(error.value).splitlines()
    assert lines[0] == f"{folder}: differs from its manifest:"
    assert lines[1].startswith(f"  model.safetensors: expected sha256 {expected}, found ")
    assert lines[2:] == ["Bake or pull this model again."]


def test_by_default_sizes_are_compared_and_nothing_is_read(root: Path) -> None:
    change_one_byte(root / "caption" / "model.safetensors")
    assert Models(root)["caption"].tier == "mapped"


def test_a_missing_file_is_a_finding(root: Path) -> None:
    manifest = Manifest.read(root / "caption")
    (root / "caption" / "vocab.txt").unlink()
    with pytest.raises(IntegrityError, match=r"vocab\.txt: No such file or directory"):
        check_hashes(manifest, root / "caption")


def test_another_word_is_refused(root: Path) -> None:
    with pytest.raises(ConfigError) as error:
        Models(root, verify="fully")
    assert str(error.value) == 'verify: "fully" is not one of size, full: did you mean "full"?'
