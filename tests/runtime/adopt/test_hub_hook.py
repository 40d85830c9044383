"""Downloads of baked repositories come from the view; all others go to the hub as before."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import LocalEntryNotFoundError

from helpers.adopted import COMMIT
from helpers.hub_server import COMMIT as SERVED
from helpers.hub_server import HubServer
from prebake.adopt import loads
from prebake.errors import ConfigError
from prebake.families.compat import torchvision_operators

torchvision_operators()

Use = Callable[[Path], None]

pytestmark = [pytest.mark.usefixtures("hooked"), pytest.mark.filterwarnings("ignore")]

FILES = {"config.json": b"{}", "README.md": b"card"}


@pytest.fixture
def online(hooked: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> HubServer:
    """A hub that can be reached, and an empty cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    if reset := getattr(huggingface_hub.utils._http, "reset_sessions", None):
        reset()  # before 1, a session made offline stays offline
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return HubServer(FILES)


def download(*args: Any, **kwargs: Any) -> str:
    """As an application calls it: looked up when called, so hooked."""
    function: Any = huggingface_hub.file_download.hf_hub_download
    return str(function(*args, **kwargs))


def snapshot(*args: Any, **kwargs: Any) -> str:
    return str(sys.modules["huggingface_hub._snapshot_download"].snapshot_download(*args, **kwargs))


def test_a_file_is_the_baked_one(tinies: Path, use: Use) -> None:
    use(tinies)
    path = download("acme/bert", "model.safetensors")
    assert Path(path).samefile(tinies / "bert" / "model.safetensors")
    assert f"/models--acme--bert/snapshots/{COMMIT}/" in path
    assert download("acme/bert", "model.safetensors", revision=COMMIT, force_download=True, cache_dir="/x") == path
    assert [(load.function, load.outcome, load.reason, load.model, load.detail) for load in loads.loads] == [
        ("hf_hub_download", "baked folder", None, "bert", {"file": "model.safetensors"})
    ] * 2


def test_a_copy_lies_in_the_caller_s_folder(tinies: Path, use: Use, tmp_path: Path) -> None:
    use(tinies)
    assert download("acme/bert", "config.json", local_dir=tmp_path / "a") == str(tmp_path / "a" / "config.json")
    assert snapshot("acme/bert", local_dir=tmp_path / "b", allow_patterns="*.json") == str(tmp_path / "b")
    text = (tinies / "bert" / "config.json").read_text()
    assert (tmp_path / "a" / "config.json").read_text() == (tmp_path / "b" / "config.json").read_text() == text
    assert not (tmp_path / "a" / "config.json").is_symlink()
    assert not (tmp_path / "b" / "model.safetensors").exists()


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


def test_wrong_calls_get_the_library_s_error() -> None:
    with pytest.raises(TypeError):
        download("acme/bert", "config.json", "sub", "model", "main", "extra")
