"""A layer holds a model's folder at its place, is read in one pass, and refuses what the manifest does not say."""

from __future__ import annotations

import hashlib
import mmap
import os
import tarfile
from pathlib import Path

import pytest

from helpers.baked_folders import baked_folder, safetensors
from prebake.baked.header import read_header
from prebake.errors import ConfigError, IntegrityError, PrebakeError
from prebake_build.baking.writer import alone_in, write_view
from prebake_build.images import hashing
from prebake_build.images.layers import WrittenLayer, write_layer


def sha256(path: Path) -> str:
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


def test_entries_are_in_the_order_of_a_walk_with_each_folder_first(tmp_path: Path) -> None:
    baked = baked_folder(tmp_path, "m", files={"unet/config.json": b"1", "unet-x": b"2", "unet/a/b": b"3"})
    layer = write_layer(baked, tmp_path / "layer")
    with tarfile.open(tmp_path / "layer") as archive:
        view = [name for name in archive.getnames() if name.startswith("models/.hub/")]
        assert archive.getnames() == [
            "models", "models/.hub", *view, "models/m", "models/m/config.json", "models/m/manifest.json",
            "models/m/model.safetensors", "models/m/unet", "models/m/unet/a", "models/m/unet/a/b",
            "models/m/unet/config.json", "models/m/unet-x",
        ]  # fmt: skip
        for entry in archive:
            file = archive.extractfile(entry) if entry.isreg() and entry.name not in view else None
            assert file is None or file.read() == (tmp_path / entry.name.removeprefix("models/")).read_bytes()
    assert layer == WrittenLayer(
        digest=sha256(tmp_path / "layer"), diff_id=layer.digest, size=(tmp_path / "layer").stat().st_size
    )


def test_a_model_from_the_hub_has_its_view_beside_it_as_a_bake_writes_it(tmp_path: Path) -> None:
    baked = baked_folder(tmp_path / "models", "m", files={"unet/config.json": b"1"})
    write_layer(baked, tmp_path / "layer")
    with alone_in(tmp_path / "models"):
        write_view(tmp_path / "models")
    expected = {path.relative_to(tmp_path).as_posix(): path for path in (tmp_path / "models" / ".hub").rglob("*")}
    with tarfile.open(tmp_path / "layer") as archive:
        found = {entry.name: entry for entry in archive if entry.name.startswith("models/.hub/")}
        assert found.keys() == expected.keys()
        for name, path in expected.items():
            if path.is_symlink():
                assert (found[name].issym(), found[name].linkname) == (True, str(path.readlink()))
            elif path.is_file():
                file = archive.extractfile(name)
                assert file and file.read() == path.read_bytes()
    assert next(entry.linkname for entry in found.values() if entry.issym()) == "../../../../m/config.json"


def test_the_files_own_modes_and_times_do_not_matter(tmp_path: Path) -> None:
    first = write_layer(baked_folder(tmp_path / "a", "m"), tmp_path / "1")
    other = baked_folder(tmp_path / "b", "m")
    for path in other.folder.iterdir():
        path.chmod(0o600)
        os.utime(path, (5, 5))
    assert write_layer(other, tmp_path / "2") == first


def test_a_file_of_many_chunks_is_hashed_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    baked = baked_folder(tmp_path, "m", {"w": [500, 123]}, files={"noise": os.urandom(77_777)})
    whole = write_layer(baked, tmp_path / "whole")
    monkeypatch.setattr(hashing, "CHUNK", 1000)
    assert write_layer(baked, tmp_path / "chunks") == whole
    assert (tmp_path / "chunks").read_bytes() == (tmp_path / "whole").read_bytes()


def test_aligned_weights_can_be_mapped_inside_the_layer(tmp_path: Path) -> None:
    baked = baked_folder(tmp_path, "m", fill=b"\7")
    plain, aligned = write_layer(baked, tmp_path / "plain"), write_layer(baked, tmp_path / "aligned", align=True)
    assert plain.digest != aligned.digest
    with tarfile.open(tmp_path / "aligned") as archive:
        entry = archive.getmember("models/m/model.safetensors")
    with (tmp_path / "aligned").open("rb") as file:
        # mmap refuses an offset that is not on a page
        mapped = mmap.mmap(file.fileno(), entry.size, offset=entry.offset_data, access=mmap.ACCESS_READ)
        start = read_header(baked.folder / "model.safetensors").data_start
        assert (start % 4096, mapped[start:]) == (0, b"\7" * (entry.size - start))
        mapped.close()


def test_zstd_keeps_the_digest_of_the_tar_file(tmp_path: Path) -> None:
    pytest.importorskip("zstandard", reason="zstd is optional: pip install zstandard")
    import zstandard

    baked = baked_folder(tmp_path, "m", {"w": [300, 1000]})
    plain = write_layer(baked, tmp_path / "plain")
    packed = write_layer(baked, tmp_path / "packed", compression="zstd")
    assert (packed.diff_id, packed.digest) == (plain.digest, sha256(tmp_path / "packed"))
    assert packed.size < plain.size
    with (tmp_path / "packed").open("rb") as file:
        assert zstandard.ZstdDecompressor().stream_reader(file).read() == (tmp_path / "plain").read_bytes()


def test_zstd_without_its_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    monkeypatch.setitem(__import__("sys").modules, "compression", None)
    with pytest.raises(ConfigError) as caught:
        write_layer(baked_folder(tmp_path, "m"), tmp_path / "layer", compression="zstd")
    assert str(caught.value) == (
        "--compression zstd: needs the package zstandard (pip install zstandard) or Python 3.14"
    )


def test_files_that_the_manifest_does_not_list_are_refused(tmp_path: Path) -> None:
    baked = baked_folder(tmp_path, "m")
    (baked.folder / "token").write_text("secret")
    with pytest.raises(IntegrityError) as caught:
        write_layer(baked, tmp_path / "layer")
    assert str(caught.value) == f"{baked.folder}: not in its manifest: token: remove it, or bake again"


def test_a_symlink_in_the_folder_is_refused(tmp_path: Path) -> None:
    baked = baked_folder(tmp_path, "m")
    (baked.folder / "config.json").unlink()
    (tmp_path / "{}").write_text("{}")
    (baked.folder / "config.json").symlink_to(tmp_path / "{}")
    with pytest.raises(IntegrityError) as caught:
        write_layer(baked, tmp_path / "layer")
    assert str(caught.value) == (
        f"{baked.folder}: not only plain files:\n  config.json: is a symlink to {tmp_path / '{}'}"
    )


def test_a_file_of_another_size_is_refused(tmp_path: Path) -> None:
    baked = baked_folder(tmp_path, "m")
    (baked.folder / "config.json").write_text("{ }")
    with pytest.raises(IntegrityError) as caught:
        write_layer(baked, tmp_path / "layer")
    assert "config.json: expected 2 bytes, found 3" in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"short", "expected 2,112 bytes, found 5: it changed"), (bytes(5000), "has more than 2,112 bytes: it changed")],
)
def test_a_file_that_changes_while_it_is_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, message: str
) -> None:
    baked = baked_folder(tmp_path, "m", files={"x": bytes(2112)})
    monkeypatch.setattr(type(baked.manifest), "check_sizes", lambda *_: (baked.folder / "x").write_bytes(data))
    with pytest.raises(PrebakeError) as caught:
        write_layer(baked, tmp_path / "layer")
    assert str(caught.value) == f"{baked.folder / 'x'}: {message} meanwhile"


def test_the_hand_made_weights_are_safetensors(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(safetensors({"w": [2, 3]}))
    assert read_header(tmp_path / "m.safetensors").entries["w"].shape == (2, 3)
