"""Downloads of baked repositories come from the view; all others go to the hub as before."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import LocalEntryNotFoundError

from helpers.adopted import COMMIT, bake_from_hub, download, snapshot
from helpers.hub_server import COMMIT as SERVED
from helpers.hub_server import HubServer
from prebake.adopt import loads
from prebake.errors import ConfigError
from prebake.families.compat import torchvision_operators

torchvision_operators()

Use = Callable[[Path], None]

pytestmark = [pytest.mark.usefixtures("hooked"), pytest.mark.filterwarnings("ignore")]


def test_a_file_is_the_baked_one(tinies: Path, use: Use) -> None:
    use(tinies)
    path = download("acme/bert", "model.safetensors")
    assert Path(path).samefile(tinies / "bert" / "model.safetensors")
    assert f"/models--acme--bert/snapshots/{COMMIT}/" in path
    assert download("acme/bert", "model.safetensors", revision=COMMIT, force_download=True, cache_dir="/x") == path
    assert [(load.function, load.outcome, load.reason, load.model, load.detail) for load in loads.loads] == [
        ("hf_hub_download", "baked folder", None, "bert", {"file": "model.safetensors"})
    ] * 2


def test_a_snapshot_is_the_view_s_folder(tinies: Path, use: Use) -> None:
    use(tinies)
    assert snapshot("acme/bert").endswith(f"/models--acme--bert/snapshots/{COMMIT}")


def test_no_request_is_sent_for_a_baked_model(tinies: Path, use: Use, online: HubServer) -> None:
    from transformers import AutoConfig, AutoModelForMaskedLM

    use(tinies)
    with online as server:
        api = HfApi(endpoint=server.url)
        assert api.hf_hub_download("acme/bert", "config.json").endswith("/config.json")
        AutoConfig.from_pretrained("acme/bert")
        AutoModelForMaskedLM.from_pretrained("acme/bert")
        assert server.requests == []


def test_other_repositories_come_from_the_hub(tinies: Path, use: Use, online: HubServer, tmp_path: Path) -> None:
    use(tinies)
    with online as server:
        path = download("acme/tiny", "config.json", endpoint=server.url)
    assert path == str(tmp_path / "cache" / "models--acme--tiny" / "snapshots" / SERVED / "config.json")
    assert [(load.outcome, load.uri) for load in loads.loads] == [("original", f"hf:acme/tiny@{SERVED}")]


def test_a_baked_commit_under_another_name_is_told(
    tinies: Path, use: Use, online: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(tinies / "bert", tmp_path / "models" / "bert")
    manifest = tmp_path / "models" / "bert" / "manifest.json"
    document = json.loads(manifest.read_text())
    document["source"] = {"uri": f"hf:acme/tiny@{SERVED}", "revision": f"commit:{SERVED}", "licence": None}
    manifest.write_text(json.dumps(document))
    use(tmp_path / "models")
    online.branches = ("v1",)
    with online as server:
        download("acme/tiny", "config.json", endpoint=server.url, revision="v1")
    assert caplog.messages[-1] == (
        f"hf:acme/tiny@{SERVED}: not baked (bert is this commit, and does not know the name v1: declare it with source "
        f'= "hf:acme/tiny@v1@{SERVED}"): loaded by huggingface_hub as without Prebake'
    )


def test_a_file_that_was_not_baked_comes_from_the_hub(tinies: Path, use: Use) -> None:
    """Offline here, so the library says that it is missing."""
    use(tinies)
    with pytest.raises(LocalEntryNotFoundError):
        download("acme/bert", "README.md")


def test_other_kinds_of_repositories_are_not_models(tinies: Path, use: Use) -> None:
    use(tinies)
    with pytest.raises(LocalEntryNotFoundError):
        download("acme/bert", "config.json", repo_type="dataset")
    assert loads.loads == []


def test_strict_refuses_other_repositories(tinies: Path, use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    use(tinies)
    monkeypatch.setenv("PREBAKE_STRICT", "1")
    with pytest.raises(ConfigError) as caught:
        snapshot("acme/other")
    assert str(caught.value) == (
        "hf:acme/other: is not baked, and PREBAKE_STRICT=1 refuses it (baked: bert (hf:acme/bert), "
        "gpt2 (hf:acme/gpt2)): add it to models.toml and bake it"
    )


def test_what_a_library_cannot_fetch_is_told_once(tinies: Path, use: Use, caplog: pytest.LogCaptureFixture) -> None:
    from transformers import AutoModelForMaskedLM

    use(tinies)
    for _ in range(2):
        with pytest.raises(OSError, match="couldn't connect") as caught:
            AutoModelForMaskedLM.from_pretrained("acme/other")
    why = caught.value.__cause__  # the hub's own words, which its versions change
    assert isinstance(why, LocalEntryNotFoundError)
    assert [message for message in caplog.messages if "acme/other" in message] == [
        f"hf:acme/other: transformers failed to load it: LocalEntryNotFoundError: {why}; not baked "
        "(baked: bert (hf:acme/bert), gpt2 (hf:acme/gpt2))"
    ]


@pytest.mark.parametrize("name", ["AutoModelForMaskedLM", "AutoTokenizer", "AutoConfig"])
def test_strict_refuses_what_a_library_fetches(
    tinies: Path, use: Use, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    import transformers

    use(tinies)
    monkeypatch.setenv("PREBAKE_STRICT", "1")
    for source, kwargs in (("acme/other", {}), ("acme/bert", {"revision": "v1"})):
        at = f"@{kwargs['revision']}" if kwargs else ""
        with pytest.raises(ConfigError) as caught:
            getattr(transformers, name).from_pretrained(source, **kwargs)
        assert str(caught.value) == (
            f"hf:{source}{at}: is not baked, and PREBAKE_STRICT=1 refuses it (baked: bert (hf:acme/bert), "
            "gpt2 (hf:acme/gpt2)): add it to models.toml and bake it"
        )


def test_files_that_a_cached_repository_lacks_are_not_told(
    tinies: Path, use: Use, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from transformers import AutoConfig

    use(tinies)
    cached = tmp_path / "cache" / "models--acme--other"
    shutil.copytree(tinies / "gpt2", cached / "snapshots" / SERVED)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(SERVED)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("transformers.utils.hub.TRANSFORMERS_CACHE", str(tmp_path / "cache"), raising=False)  # 4.57
    monkeypatch.setenv("PREBAKE_STRICT", "1")
    AutoConfig.from_pretrained("acme/other")
    with pytest.raises(OSError, match="couldn't connect"):
        transformers_file("acme/other", "vocab.txt")
    assert loads.loads == []


def transformers_file(*arguments: str) -> Any:
    from transformers.utils.hub import cached_file

    return cached_file(*arguments)


# --- single files that were baked --------------------------------------------------------------------------------


@pytest.mark.usefixtures("loaders")
@pytest.mark.parametrize("way", ["path", "open file", "map_location", "snapshot"])
def test_a_pickle_of_the_hub_is_the_object_that_was_baked(files: Path, use: Use, way: str) -> None:
    use(files)
    path = download("acme/net", "net.bin")
    assert path == str(files / "net" / "model.safetensors")
    loads.loads.clear()
    if way == "open file":
        with Path(path).open("rb") as file:
            found = torch.load(file, weights_only=True)
    elif way == "map_location":
        found = torch.load(path, map_location=lambda storage, _: storage)
    else:
        found = torch.load(path if way == "path" else Path(snapshot("acme/net"), "net.bin"))
    original: Any = torch.load
    expected = original._prebake(files.parent / "checkpoint" / "net.bin", weights_only=True)
    assert list(found) == list(expected) and found["epoch"] == 7
    assert list(found["state_dict"]) == list(expected["state_dict"]) and found["state_dict"]["n"] == 3
    for name in ("b", "a", "tied"):
        assert torch.equal(found["state_dict"][name], expected["state_dict"][name])
    assert found["state_dict"]["tied"].data_ptr() == found["state_dict"]["b"].data_ptr()
    assert (loads.loads[-1].outcome, loads.loads[-1].model) == (
        "baked folder" if way == "map_location" else "mapped",
        "net",
    )


@pytest.mark.usefixtures("loaders")
def test_a_safetensors_file_that_was_baked_alone_comes_before_the_network_s(files: Path, use: Use) -> None:
    use(files)
    path = download("acme/net", "model.safetensors")
    assert path == str(files / "safe" / "model.safetensors")
    found = safetensors.torch.load_file(path)
    original: Any = safetensors.torch.load_file
    expected = original._prebake(files.parent / "checkpoint" / "model.safetensors")
    assert sorted(found) == sorted(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert (loads.loads[-1].outcome, loads.loads[-1].model) == ("mapped", "safe")


def test_a_single_file_leaves_the_rest_of_its_repository_to_the_hub(
    files: Path, use: Use, online: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = tmp_path / "models" / "net"
    bake_from_hub(files.parent / "checkpoint", alone, "acme/tiny", family="tensors", options={"file": "net.bin"})
    use(alone.parent)
    monkeypatch.setattr("transformers.utils.hub.TRANSFORMERS_CACHE", str(tmp_path / "cache"), raising=False)  # 4.57
    with online as server:
        url = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        for module in ("constants", "file_download"):  # the latter in huggingface_hub 0.36
            monkeypatch.setattr(f"huggingface_hub.{module}.HUGGINGFACE_CO_URL_TEMPLATE", url, raising=False)
        assert download("acme/tiny", "net.bin") == str(alone / "model.safetensors")
        assert server.requests == []
        cached = transformers_file("acme/tiny", "config.json")
        assert cached == str(tmp_path / "cache" / "models--acme--tiny" / "snapshots" / SERVED / "config.json")
        assert sorted(path.name for path in Path(snapshot("acme/tiny", endpoint=server.url)).iterdir()) == [
            "README.md",
            "config.json",
        ]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert snapshot("acme/tiny").endswith(f"/models--acme--tiny/snapshots/{COMMIT}")


def test_weights_that_baking_replaced_name_the_way_out(
    tinies: Path, use: Use, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(tinies)
    with pytest.raises(LocalEntryNotFoundError):
        download("acme/bert", "pytorch_model.bin")
    way = (
        'the baked model has no pytorch_model.bin: declare it too, with class = "tensors" and file = '
        '"pytorch_model.bin"'
    )
    assert caplog.messages[-1].endswith(f"; not baked ({way})")
    monkeypatch.setenv("PREBAKE_STRICT", "1")
    with pytest.raises(ConfigError) as caught:
        download("acme/bert", "pytorch_model.bin")
    assert str(caught.value) == (
        f"hf:acme/bert: is not baked, and PREBAKE_STRICT=1 refuses it ({way}): add it to models.toml and bake it"
    )


@pytest.mark.usefixtures("loaders")
def test_strict_lets_the_application_read_the_network_s_weights(
    tinies: Path, use: Use, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(tinies)
    monkeypatch.setenv("PREBAKE_STRICT", "1")
    for options in ({}, {"local_dir": tmp_path}):
        loads.loads.clear()
        assert "bert.embeddings.word_embeddings.weight" in safetensors.torch.load_file(
            download("acme/bert", "model.safetensors", **options)
        )
        assert [(load.outcome, load.model, load.reason) for load in loads.loads] == [("baked folder", "bert", None)] * 2


def test_wrong_calls_get_the_library_s_error() -> None:
    with pytest.raises(TypeError):
        download("acme/bert", "config.json", "sub", "model", "main", "extra")
