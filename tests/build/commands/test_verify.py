"""`prebake verify` finds every byte that is not as promised, and says which file."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.baking import flip_byte, prebake, torch_job, without_privileges
from helpers.networks import Tagger
from helpers.runtime_fakes import change_manifest
from prebake.baked.manifest import Manifest
from prebake_build.baking.worker import run


@pytest.fixture(scope="module")
def baked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with two models. Copy before you change it."""
    folder = tmp_path_factory.mktemp("verify")
    (folder / "c").mkdir()
    torch.save(Tagger().state_dict(), folder / "c" / "w.pth")
    for name in ("one", "two"):
        run(torch_job(folder / "c", folder / "models" / name, "helpers.networks:tagger"))
    return folder / "models"


@pytest.fixture
def root(baked: Path, tmp_path: Path) -> Path:
    return shutil.copytree(baked, tmp_path / "models")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_is_as_promised_is_said_so(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digests = [Manifest.read(root / name).set_digest for name in ("one", "two")]
    expected = f"one  {digests[0]}  as promised\ntwo  {digests[1]}  as promised\n"
    assert prebake(capsys, "verify", root) == (0, expected, "")
    assert prebake(capsys, "verify", root, "--quick") == (0, expected, "")
    assert prebake(capsys, "verify", root / "one") == (0, expected.splitlines()[0] + "\n", "")


def test_one_flipped_bit_is_found_and_named_with_both_hashes(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = root / "two" / "model.safetensors"
    before = sha256(weights)
    flip_byte(weights)
    code, out, err = prebake(capsys, "verify", root)
    assert (code, [line.split()[-1] for line in out.splitlines()]) == (1, ["promised", "differs"])
    assert err == (
        f"prebake: {root}/two: not the files that were promised:\n"
        f"  model.safetensors: expected sha256 {before}, found {sha256(weights)}\n"
    )


def test_quick_does_not_read_the_weights(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip_byte(root / "two" / "model.safetensors")
    assert prebake(capsys, "verify", root, "--quick")[0] == 0


def extra(folder: Path) -> None:
    (folder / "notes.txt").touch()


def link(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent.parent / "elsewhere")
    (folder / "model.safetensors").symlink_to(folder.parent.parent / "elsewhere")


def newer(folder: Path) -> None:
    document = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(document | {"format": 99}))


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda folder: (folder / "buffers.safetensors").unlink(), "  buffers.safetensors: missing"),
        (lambda folder: os.truncate(folder / "buffers.safetensors", 100), ": expected 4,144 bytes, found 100"),
        (lambda folder: flip_byte(folder / "buffers.safetensors", 0), "/buffers.safetensors: its header is not JSON: "),
        (extra, "  notes.txt: not listed"),
        (link, "  model.safetensors: is a symlink to "),
        (lambda folder: (folder / "manifest.json").write_text("{"), "/manifest.json: this manifest is not JSON: "),
        (lambda folder: (folder / "manifest.json").unlink(), "/manifest.json: there is no such file"),
        (newer, ": format: this manifest has format 99, but this Prebake reads up to 1: update prebake, or bake again"),
    ],
    ids=["missing", "truncated", "header", "extra", "symlink", "garbage manifest", "no manifest", "newer manifest"],
)
@pytest.mark.parametrize("quick", [False, True], ids=["whole", "quick"])
def test_any_damage_is_found_and_does_not_hide_the_other_model(
    root: Path, capsys: pytest.CaptureFixture[str], damage: Any, expected: str, quick: bool
) -> None:
    damage(root / "one")
    extra(root / "two")
    code, out, err = prebake(capsys, "verify", root, *(["--quick"] if quick else []))
    assert code == 1
    assert expected in err
    assert "two: not the files that were promised:\n  notes.txt: not listed" in err
    assert out.count("  differs") == 2


def test_the_same_as_json(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "one" / "manifest.json").unlink()
    code, out, _ = prebake(capsys, "verify", root, "--json")
    found = json.loads(out)
    assert (code, [sorted(result) for result in found]) == (1, [["findings", "name", "notes", "set_digest"]] * 2)
    assert (found[0]["set_digest"], len(found[0]["findings"]), found[1]["findings"]) == (None, 1, [])


def test_code_that_is_not_allowed_is_named_and_not_approved(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PREBAKE_ALLOW", "helpers.networks.small")
    note = 'names the code "helpers.networks:tagger", which loads only where PREBAKE_ALLOW names helpers.networks'
    digest = Manifest.read(root / "one").set_digest
    assert prebake(capsys, "verify", root / "one") == (0, f"one  {digest}  files as promised; {note}\n", "")
    found = json.loads(prebake(capsys, "verify", root / "one", "--json")[1])
    assert found == [{"findings": [], "name": "one", "notes": [note], "set_digest": digest}]


def test_a_warm_up_that_is_not_allowed_is_named_and_not_approved(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = Manifest.read(root / "one").set_digest
    change_manifest(root / "one", loading={"warmup": "app.warm:one"})
    note = 'names the code "app.warm:one", which runs as its warm-up only where PREBAKE_ALLOW names app.warm'
    assert prebake(capsys, "verify", root / "one") == (0, f"one  {digest}  files as promised; {note}\n", "")
    change_manifest(root / "one", loading={"warmup": "helpers.warmups:note"})
    assert prebake(capsys, "verify", root / "one") == (0, f"one  {digest}  as promised\n", "")


def test_a_folder_under_another_name_is_found(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "one").rename(root / "three")
    code, _, err = prebake(capsys, "verify", root)
    assert (code, err) == (1, f'prebake: {root}/three: its manifest names another model, "one"\n')


def test_a_file_that_may_not_be_read_is_named(root: Path) -> None:
    (root / "one" / "model.safetensors").chmod(0)
    done = without_privileges("verify", root)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"prebake: {root}/one/model.safetensors: Permission denied",
        f"prebake: {root}/one/model.safetensors: cannot read these weights: Permission denied",
    ]


def test_a_folder_without_models_is_wrong_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prebake(capsys, "verify", tmp_path) == (
        2, "", f"prebake: error: {tmp_path}: holds no baked model (run: prebake bake --output {tmp_path})\n"
    )  # fmt: skip
    assert prebake(capsys, "verify", tmp_path / "no")[::2] == (
        2, f"prebake: error: {tmp_path}/no: there is no such folder (expected a root of baked models, or one of them)\n"
    )  # fmt: skip
