"""`torch.load`, `load_state_dict_from_url` and `load_file` of declared files give the file's object, mapped."""

from __future__ import annotations

import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from helpers.baking import job
from helpers.hooked import Hooked
from prebake.__main__ import main
from prebake.adopt import loads
from prebake.adopt.hooks import safetensors as safetensors_hook
from prebake.adopt.hooks import torch as torch_hook
from prebake.errors import ConfigError
from prebake_build.baking.worker import run

URL = "https://example.org/weights/net.pth"


@pytest.fixture
def hooked(monkeypatch: pytest.MonkeyPatch) -> Hooked:
    found = Hooked(monkeypatch)
    places = [(torch, "load"), (torch.serialization, "load"), (torch.hub, "load_state_dict_from_url")]
    found.install(torch_hook, torch, [*places, (torch.hub, "load_url")] if hasattr(torch.hub, "load_url") else places)
    found.install(safetensors_hook, safetensors.torch, [(safetensors.torch, "load_file")])
    return found


def content() -> dict[str, Any]:
    return {"epoch": 3, "state": {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2)}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "app").mkdir()
    torch.save(content(), tmp_path / "app" / "net.pth")
    return tmp_path / "app" / "net.pth"


def bake(file: Path, uri: str, name: str | None = None) -> Path:
    """A root with the file baked as the model `net` of this source."""
    root = file.parents[1] / "models"
    source = {"uri": uri, "revision": "sha256:" + "0" * 64, "licence": None}
    run(
        job(
            file.parent,
            root / "net",
            family="tensors",
            class_="",
            source=source,
            options={"file": name} if name else {},
        )
    )
    return root


def same(found: Any) -> bool:
    expected = content()
    return bool(
        found["epoch"] == 3
        and found["state"].keys() == expected["state"].keys()
        and all(torch.equal(found["state"][name], tensor) for name, tensor in expected["state"].items())
    )


@pytest.mark.parametrize("place", [None, "cpu", torch.device("cpu")], ids=["none", "name", "device"])
def test_a_declared_path_is_mapped_even_if_the_file_is_gone(hooked: Hooked, file: Path, place: Any) -> None:
    hooked.serve(bake(file, f"path:{file}"))
    file.unlink()
    assert same(torch.load(file, map_location=place, weights_only=True))
    assert hooked.outcome == ("mapped", "net", None)
    assert (hooked.load.uri, hooked.load.class_) == (f"path:{file}", "tensors")


def test_an_open_file_is_known_by_its_name(hooked: Hooked, file: Path) -> None:
    hooked.serve(bake(file, f"path:{file}"))
    with file.open("rb") as opened:
        assert same(torch.load(opened))
    assert hooked.outcome == ("mapped", "net", None)


def test_each_call_has_tensors_of_its_own(hooked: Hooked, file: Path) -> None:
    hooked.serve(bake(file, f"path:{file}"))
    torch.load(file)["state"]["weight"].zero_()
    assert same(torch.load(file))


def test_a_file_of_an_installed_package_is_named_by_the_package(
    hooked: Hooked, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = file.parent / "site-packages"
    (site / "pitch" / "assets").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(site))
    hooked.serve(bake(file, "package:pitch/assets/full.pth"))
    assert same(torch.load(str(site / "pitch" / "assets" / "full.pth")))
    assert hooked.load.uri == "package:pitch/assets/full.pth"
    assert hooked.outcome == ("mapped", "net", None)


@pytest.mark.parametrize("declared", [URL, f"{URL}#sha256={'a' * 64}"], ids=["plain", "pinned"])
def test_a_url_is_not_asked(hooked: Hooked, file: Path, declared: str) -> None:
    hooked.serve(bake(file, f"url:{declared}"))
    assert same(torch.hub.load_state_dict_from_url(URL, map_location="cpu", progress=False))
    assert hooked.outcome == ("mapped", "net", None)
    assert hooked.load.function == "torch.hub.load_state_dict_from_url"


def test_a_safetensors_file_is_mapped(hooked: Hooked, tmp_path: Path) -> None:
    file = tmp_path / "app" / "net.safetensors"
    file.parent.mkdir()
    safetensors.torch.save_file(content()["state"], file)
    hooked.serve(bake(file, f"path:{file}"))
    found = safetensors.torch.load_file(str(file))
    assert same({"epoch": 3, "state": found})
    assert hooked.outcome == ("mapped", "net", None)
    assert hooked.load.library == "safetensors"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"map_location": lambda storage, place: storage}, "map_location is a function"),
        ({"map_location": {"cuda:0": "cpu"}}, "map_location is a dict"),
        ({"encoding": "ascii", "weights_only": False}, "encoding"),
        ({"pickle_module": __import__("pickle"), "weights_only": False}, "pickle_module"),
    ],
    ids=["function", "dict", "encoding", "pickle_module"],
)
def test_what_changes_the_result_is_loaded_by_torch(
    hooked: Hooked, file: Path, arguments: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    hooked.serve(bake(file, f"path:{file}"))
    assert same(torch.load(file, **arguments))
    assert hooked.outcome == ("original", None, reason)
    assert caplog.messages == [f"path:{file}: not baked ({reason}): loaded by torch as without Prebake"]


def declared(folder: Path, models: str) -> Path:
    """A root with the models of this `models.toml`, locked and baked by the command line."""
    (folder / "models.toml").write_text(models)
    arguments = ["--models", str(folder / "models.toml"), "--cache", str(folder / "cache")]
    assert main(["lock", *arguments]) == 0
    assert main(["bake", *arguments, "--output", str(folder / "models")]) == 0
    return folder / "models"


TWO = """
[models.net]
source = "path:app"
class = "tensors"
file = "net.pth"

[models.other]
source = "path:app"
class = "tensors"
file = "more/other.safetensors"
"""


def test_files_of_a_declared_folder_are_mapped_by_their_names(
    hooked: Hooked, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (file.parent / "more").mkdir()
    safetensors.torch.save_file({"other": torch.zeros(3)}, file.parent / "more" / "other.safetensors")
    hooked.serve(declared(tmp_path, TWO))
    shutil.rmtree(file.parent)
    assert same(torch.load("app/net.pth"))
    assert torch.equal(safetensors.torch.load_file("app/more/other.safetensors")["other"], torch.zeros(3))
    assert [(load.model, load.outcome) for load in loads.loads] == [("net", "mapped"), ("other", "mapped")]


def test_a_link_to_the_baked_folder_is_its_source(hooked: Hooked, file: Path, tmp_path: Path) -> None:
    hooked.serve(bake(file, "path:elsewhere", "net.pth"))
    (tmp_path / "link").symlink_to(tmp_path / "models" / "net")
    assert same(torch.load(tmp_path / "link" / "net.pth"))
    assert hooked.outcome == ("mapped", "net", None)


def test_another_file_of_the_folder_is_loaded_by_torch(hooked: Hooked, file: Path) -> None:
    hooked.serve(bake(file, f"path:{file.parent}", "net.pth"))
    other = file.with_name("other.pth")
    torch.save(content(), other)
    assert same(torch.load(other))
    assert hooked.outcome == ("original", None, f"baked: net (path:{file.parent})")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"map_location": lambda storage, place: storage, "mmap": True}, "map_location is a function"),
        ({"encoding": "ascii", "weights_only": False}, "encoding"),
    ],
    ids=["function", "encoding"],
)
def test_where_the_file_is_gone_torch_reads_the_baked_object(
    hooked: Hooked, file: Path, arguments: dict[str, Any], reason: str
) -> None:
    hooked.serve(bake(file, f"path:{file.parent}", "net.pth"))
    file.unlink()
    assert same(torch.load(file, **arguments))
    assert hooked.outcome == ("baked folder", "net", reason)


def test_what_is_baked_and_damaged_comes_from_the_file(
    hooked: Hooked, file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hooked.serve(bake(file, f"path:{file}"))
    damaged = tmp_path / "models" / "net" / "object.json"
    damaged.write_text(damaged.read_text().replace("epoch", "other"))
    why = f"net: no tier could load it: mapped: {damaged}: its sha256 differs from the manifest's"
    assert same(torch.load(file))
    assert hooked.outcome == ("original", None, why)
    assert caplog.messages[-1] == (f"path:{file}: not baked ({why}): loaded by torch as without Prebake")
    hooked.strict()
    with pytest.raises(ConfigError) as caught:
        torch.load(file)
    assert str(caught.value) == (
        f"path:{file}: is not baked, and PREBAKE_STRICT=1 refuses it ({why}): add it to models.toml and bake it"
    )


def test_another_file_is_loaded_by_torch(hooked: Hooked, file: Path, tmp_path: Path) -> None:
    hooked.serve(bake(file, f"path:{tmp_path}/other.pth"))
    assert same(torch.load(file))
    assert hooked.outcome == ("original", None, f"baked: net (path:{tmp_path}/other.pth)")


def test_a_load_that_raises_is_recorded(hooked: Hooked, file: Path) -> None:
    hooked.serve(bake(file, f"path:{file.parent}", "net.pth"))
    with pytest.raises(FileNotFoundError):
        torch.load(file.with_name("missing.pth"))
    assert hooked.outcome == ("failed", None, "FileNotFoundError: No such file or directory")


def test_strict_refuses_another_file(hooked: Hooked, file: Path, tmp_path: Path) -> None:
    hooked.serve(bake(file, f"path:{tmp_path}/other.pth"))
    hooked.strict()
    with pytest.raises(ConfigError) as caught:
        torch.load(file)
    assert str(caught.value) == (
        f"path:{file}: is not baked, and PREBAKE_STRICT=1 refuses it (baked: net (path:{tmp_path}/other.pth)): add it "
        "to models.toml and bake it"
    )


def test_a_library_s_own_file_is_none_of_our_business(
    hooked: Hooked, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "__name__", "diffusers.models.loading")
    assert same(torch.load(file))
    assert hooked.loads == []


def test_bytes_and_files_read_in_part_are_left_alone(hooked: Hooked, file: Path) -> None:
    import io

    assert same(torch.load(io.BytesIO(file.read_bytes())))
    assert hooked.loads == []


def test_a_member_of_an_archive_is_not_the_file_of_its_name(
    hooked: Hooked, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooked.serve(bake(file, f"path:{file}"))
    torch.save({"other": 1}, file.with_name("other.pth"))
    with zipfile.ZipFile(file.with_name("archive.zip"), "w") as archive:
        archive.write(file.with_name("other.pth"), file.name)
    monkeypatch.chdir(file.parent)
    with zipfile.ZipFile("archive.zip") as archive, archive.open(file.name) as member:
        assert torch.load(member) == {"other": 1}
    assert hooked.loads == []


def test_observed_a_load_is_written_and_not_redirected(hooked: Hooked, file: Path, tmp_path: Path) -> None:
    hooked.serve(bake(file, f"path:{file}"))
    hooked.observe(tmp_path / "seen")
    assert same(torch.load(file))
    assert hooked.outcome == ("original", None, "no model is baked")
    assert f'"uri": "path:{file}"' in (tmp_path / "seen").read_text()


def test_a_path_in_a_package_beside_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    site = tmp_path / "dist-packages"
    monkeypatch.setattr(sys, "path", [str(tmp_path), str(site)])
    assert torch_hook.source_of(site / "net" / "w.pth") == "package:net/w.pth"
    assert torch_hook.source_of(site / "w.pth") == f"path:{site}/w.pth"
    assert torch_hook.source_of(tmp_path / "net" / "w.pth") == f"path:{tmp_path}/net/w.pth"
