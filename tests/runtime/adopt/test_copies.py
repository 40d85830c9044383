"""Copies of baked files in a folder of the application's, and what later loads of the folder are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from helpers.adopted import COMMIT, download, snapshot
from helpers.hub_server import COMMIT as SERVED
from helpers.hub_server import HubServer
from prebake.adopt import copies, loads
from prebake.families.compat import torchvision_operators

torchvision_operators()

Use = Callable[[Path], None]

pytestmark = [pytest.mark.usefixtures("hooked"), pytest.mark.filterwarnings("ignore")]


def test_a_copy_lies_in_the_caller_s_folder(tinies: Path, use: Use, tmp_path: Path) -> None:
    use(tinies)
    assert download("acme/bert", "config.json", local_dir=tmp_path / "a") == str(tmp_path / "a" / "config.json")
    assert snapshot("acme/bert", local_dir=tmp_path / "b", allow_patterns="*.json") == str(tmp_path / "b")
    text = (tinies / "bert" / "config.json").read_text()
    assert (tmp_path / "a" / "config.json").read_text() == (tmp_path / "b" / "config.json").read_text() == text
    assert not (tmp_path / "a" / "config.json").is_symlink()
    assert not (tmp_path / "b" / "model.safetensors").exists()


@pytest.mark.usefixtures("loaders")
@pytest.mark.parametrize("way", ["file", "tree"])
def test_copies_of_single_files_have_upstream_s_format(files: Path, use: Use, tmp_path: Path, way: str) -> None:
    use(files)
    names = ["config.json", "model.safetensors", "net.bin"]
    if way == "tree":
        assert snapshot("acme/net", local_dir=tmp_path) == str(tmp_path)
    else:
        assert [download("acme/net", name, local_dir=tmp_path) for name in names] == [str(tmp_path / n) for n in names]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    readers: Any = torch.load, safetensors.torch.load_file
    for name, reader in (("net.bin", readers[0]._prebake), ("model.safetensors", readers[1]._prebake)):
        copied, upstream = reader(tmp_path / name), reader(files.parent / "checkpoint" / name)
        assert repr(sorted(copied.items())) == repr(sorted(upstream.items()))
    assert [load.outcome for load in loads.loads] == ["baked folder"] * (1 if way == "tree" else 3)


@pytest.mark.usefixtures("loaders")
def test_a_copy_is_the_repository_for_later_loads(
    files: Path, use: Use, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForMaskedLM

    use(files)
    monkeypatch.setenv("PREBAKE_STRICT", "1")
    place = snapshot("acme/net", local_dir=tmp_path / "weights")
    loads.loads.clear()
    assert torch.load(Path(place, "net.bin"))["epoch"] == 7
    safetensors.torch.load_file(Path(place, "model.safetensors"))
    assert AutoModelForMaskedLM.from_pretrained(place).name_or_path == place
    torch.load(Path(place, "net.bin"), map_location=lambda storage, _: storage)
    assert [(load.outcome, load.model, load.uri) for load in loads.loads[:3]] == [
        ("mapped", model, f"hf:acme/net@{COMMIT}") for model in ("net", "safe", "bert")
    ]
    assert (loads.loads[3].outcome, loads.loads[3].model) == ("baked folder", "net")


def test_a_copy_that_has_changed_is_the_application_s_own(tinies: Path, use: Use, tmp_path: Path) -> None:
    from transformers import AutoModelForMaskedLM

    use(tinies)
    changes: list[tuple[str, Callable[[Path], object]]] = [
        ("same", lambda _: None),
        ("changed", lambda place: (place / "config.json").write_text((place / "config.json").read_text() + "\n")),
        ("more", lambda place: (place / "generation_config.json").write_text("{}")),
    ]
    for name, change in changes:
        change(Path(snapshot("acme/bert", local_dir=tmp_path / name)))
        AutoModelForMaskedLM.from_pretrained(tmp_path / name)
    snapshot("acme/bert", local_dir=tmp_path / "part", allow_patterns=["config.json", "model.safetensors"])
    AutoModelForMaskedLM.from_pretrained(tmp_path / "part")
    found = [(load.uri, load.outcome) for load in loads.loads if load.library == "transformers"]
    assert found == [(f"hf:acme/bert@{COMMIT}", "mapped"), (f"path:{tmp_path}/changed", "original"),
                     (f"path:{tmp_path}/more", "original"), (f"hf:acme/bert@{COMMIT}", "mapped")]  # fmt: skip


def test_of_many_folders_the_last_are_remembered(
    tinies: Path, use: Use, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "KEPT", 2)
    use(tinies)
    places = [snapshot("acme/gpt2", local_dir=tmp_path / str(number)) for number in range(3)]
    assert [copies.repository(place) for place in places] == [None, *[f"hf:acme/gpt2@{COMMIT}"] * 2]


def test_a_download_into_a_folder_is_the_repository_that_scan_sees(
    use: Use, online: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import BertModel

    monkeypatch.setenv("PREBAKE_OBSERVE", str(tmp_path / "seen"))
    with online as server:
        place = snapshot("acme/tiny", local_dir=tmp_path / "weights", endpoint=server.url)
    with pytest.raises(Exception, match="weights"):
        BertModel.from_pretrained(place)
    assert [(load.function, load.uri) for load in loads.loads] == [
        ("snapshot_download", f"hf:acme/tiny@{SERVED}"), ("BertModel.from_pretrained", f"hf:acme/tiny@{SERVED}")
    ]  # fmt: skip
