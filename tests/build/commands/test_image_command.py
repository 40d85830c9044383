"""`prebake image check` prints each finding with its layer, its bytes and the way to mend it, and ends with 1."""

from __future__ import annotations

import argparse
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import docker
import pytest

from helpers.baking import flip_byte
from helpers.oci_images import LayerOf, weights, write_image
from prebake.errors import IntegrityError, PrebakeError
from prebake_build.commands import image as command
from prebake_build.images.saved import saved_image

CODE = LayerOf({"app/main.py": b""}, created_by="COPY app /app # buildkit")
ZIPPED = LayerOf({"models/m.safetensors": weights(2)}, created_by="COPY models /models # buildkit", gzip=True)


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    command.add(parser.add_subparsers())
    options = parser.parse_args(["image", "check", *map(str, arguments)])
    return int(options.run(options))


def test_findings_are_printed_with_their_layer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_image(tmp_path / "oci", CODE, ZIPPED)
    manifest = json.loads((folder / "index.json").read_text())["manifests"][0]["digest"].partition(":")[2]
    layers = json.loads((folder / "blobs" / "sha256" / manifest).read_text())["layers"]
    assert run(folder) == 1
    printed = capsys.readouterr()
    assert printed.out == (
        "compressed-weights  2 MB  weights in a layer compressed with gzip: it saves some 7 % of them and takes most "
        f"of the pull\n  layer 1  {layers[1]['digest'][:19]}  COPY models /models # buildkit\n  /models/m.safetensors\n"
        "  mend: build with --output type=registry,compression=uncompressed,force-compression=true,oci-mediatypes=true "
        "(or compression=zstd)\n"
    )
    size = sum(layer["size"] for layer in layers)
    assert printed.err == f"{folder}: 1 finding (2 layers, {size / 1000:.3g} kB)\n"


def test_names_from_the_image_do_not_reach_the_terminal_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layer = LayerOf({"m\udcff\x1b[2J/m.safetensors": weights(2)}, created_by="COPY \x1b]0;title\a /m", gzip=True)
    folder = write_image(tmp_path / "oci", layer)
    assert run(folder) == 1
    lines = capsys.readouterr().out.splitlines()
    assert (lines[1].rpartition("  ")[2], lines[2]) == (r"COPY \x1b]0;title\x07 /m", r"  /m\xff\x1b[2J/m.safetensors")
    assert run(folder, "--json") == 1
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    assert finding["paths"] == ["/m\\xff\x1b[2J/m.safetensors"]


def test_json_has_all_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(write_image(tmp_path / "oci", CODE, ZIPPED), "--json") == 1
    document = json.loads(capsys.readouterr().out)
    (finding,) = document["findings"]
    assert (document["platform"], finding["rule"], finding["bytes"], finding["paths"]) == (
        "linux/amd64", "compressed-weights", len(weights(2)), ["/models/m.safetensors"]
    )  # fmt: skip
    assert (finding["layer"]["number"], finding["layer"]["created_by"]) == (1, "COPY models /models # buildkit")


def test_a_good_image_ends_with_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(write_image(tmp_path / "oci", CODE), "--ignore", "missing-annotations") == 0
    assert capsys.readouterr().out == ""


def test_many_paths_are_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {f"models/{number}.safetensors": weights(1, bytes([number])) for number in range(1, 9)}
    run(write_image(tmp_path / "oci", LayerOf(files, gzip=True)))
    assert "  /models/5.safetensors\n  and 3 more\n" in capsys.readouterr().out


def test_a_damaged_layout_is_refused(tmp_path: Path) -> None:
    folder = write_image(tmp_path / "oci", CODE)
    flip_byte(max((folder / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size))
    with pytest.raises(IntegrityError, match="layers were changed"):
        run(folder)


# --- from the engine ---------------------------------------------------------------------------------------------


class FakeEngine:
    """Saves a folder as an engine saves an image, in small chunks."""

    def __init__(self, folder: Path | None, *, members: dict[str, bytes] | None = None) -> None:
        self._folder, self._members = folder, members or {}
        self.images = SimpleNamespace(get=self._get)

    def _get(self, name: str) -> Any:
        if self._folder is None:
            raise docker.errors.ImageNotFound("no")
        return SimpleNamespace(save=self._save, attrs={"Size": 1})

    def _save(self, chunk_size: int) -> Iterator[bytes]:
        assert self._folder and chunk_size > 0
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            archive.add(self._folder, ".")
            for name, data in self._members.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
        for start in range(0, len(buffer.getvalue()), 10_000):
            yield buffer.getvalue()[start : start + 10_000]

    def close(self) -> None:
        pass


def test_an_image_of_the_engine_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = FakeEngine(write_image(tmp_path / "oci", CODE, ZIPPED))
    monkeypatch.setattr("prebake_build.images.engine.open_engine", lambda: engine)
    assert run("app:latest") == 1
    assert capsys.readouterr().err.startswith("app:latest: 1 finding (2 layers, ")


def test_a_full_temporary_folder_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_disk: Callable[[Path, str], Path]
) -> None:
    disk = small_disk(tmp_path / "disk", "8k")
    monkeypatch.setattr("tempfile.tempdir", str(disk))
    with pytest.raises(PrebakeError) as caught, saved_image(FakeEngine(write_image(tmp_path / "oci", CODE)), "app"):
        pass
    assert str(caught.value).startswith(f"app: its copy in {disk}/prebake-image-")
    assert str(caught.value).endswith(
        " (TMPDIR): cannot be written: No space left on device: free some space, or name another place"
    )
    assert caught.value.exit_code == 1
    assert not list(disk.iterdir())


def test_nothing_but_the_layouts_own_files_is_taken_from_the_engine(tmp_path: Path) -> None:
    engine = FakeEngine(write_image(tmp_path / "oci", CODE), members={"../evil": b"x", "repositories": b"{}"})
    with saved_image(engine, "app") as image:
        names = sorted(path.name for path in image.layout.folder.iterdir())
    assert names == ["blobs", "index.json", "oci-layout"]
    assert not (image.layout.folder.parent / "evil").exists()


def test_an_image_that_is_not_there_and_an_engine_that_is_too_old_are_said(tmp_path: Path) -> None:
    with pytest.raises(PrebakeError) as caught, saved_image(FakeEngine(None), "app"):
        pass
    assert str(caught.value) == "app: there is no such image here, and no such folder: build it, or pull it"
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker" / "manifest.json").write_text("[]")
    with pytest.raises(PrebakeError) as caught, saved_image(FakeEngine(tmp_path / "docker"), "app"):
        pass
    assert str(caught.value) == (
        "app: this engine does not save images as OCI layouts (Docker 25 does): build with --output "
        "type=oci,dest=DIR,tar=false and check that folder"
    )
