"""On a full disk, commands end with 1, say where and what to do, and leave nothing half and the old file as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.baked_folders import baked_folder
from helpers.keys import key_pair
from prebake.__main__ import main as prebake

SmallDisk = Callable[[Path, str], Path]


def fill(folder: Path) -> None:
    """No block of the file system is free afterwards."""
    with (folder / "ballast").open("ab", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError:
                return


@pytest.fixture
def disk(tmp_path: Path, small_disk: SmallDisk) -> Path:
    return small_disk(tmp_path / "disk", "64k")


def test_a_lock_is_not_written_and_nothing_is_printed(
    disk: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (disk / "models.toml").write_text(f'[models.m]\nsource = "path:{checkpoint}"\n')
    fill(disk)
    assert prebake(["lock", "--models", f"{disk}/models.toml"]) == 1
    assert capsys.readouterr() == (
        "",
        f"prebake: error: {disk}/models.lock: cannot be written: No space left on device: free some space, or name "
        "another place\n",
    )
    assert sorted(path.name for path in disk.iterdir()) == ["ballast", "models.toml"]


def test_a_bill_of_materials_is_not_written(disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("cyclonedx.validation.json", reason="an SBOM is optional: pip install 'prebake-build[trust]'")
    baked_folder(tmp_path / "models", "m")
    fill(disk)
    assert prebake(["sbom", f"{tmp_path}/models", "--output", f"{disk}/models.cdx.json"]) == 1
    assert capsys.readouterr().err == (
        f"prebake: error: {disk}/models.cdx.json: cannot be written: No space left on device: free some space, or name "
        "another place\n"
    )
    assert [path.name for path in disk.iterdir()] == ["ballast"]


def test_a_signature_is_not_written(disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("model_signing", reason="signing is optional: pip install 'prebake-build[trust]'")
    baked_folder(disk, "m")
    key = key_pair(tmp_path)[1].with_suffix(".pem")
    fill(disk)
    assert prebake(["sign", str(disk), "--key", str(key)]) == 1
    assert capsys.readouterr().err == (
        f"prebake: error: {disk}/prebake.sig: cannot be written: No space left on device: free some space, or name "
        "another place\n"
    )
    assert sorted(path.name for path in disk.iterdir()) == ["ballast", "m"]


def test_a_full_temporary_folder_is_named(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("model_signing", reason="signing is optional: pip install 'prebake-build[trust]'")
    baked_folder(tmp_path / "models", "m")
    key = key_pair(tmp_path)[1].with_suffix(".pem")
    fill(disk)
    monkeypatch.setenv("TMPDIR", str(disk))
    monkeypatch.setattr("tempfile.tempdir", str(disk))
    assert prebake(["sign", f"{tmp_path}/models", "--key", str(key)]) == 1
    assert capsys.readouterr().err.endswith(
        f": No space left on device: free some space there, or in the temporary folder ({disk})\n"
    )
    assert not (tmp_path / "models" / "prebake.sig").exists()
