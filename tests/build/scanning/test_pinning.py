"""A source that the load did not pin is pinned by the hub; a dtype that the checkpoint declares is left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from helpers.hub_server import COMMIT, HubServer
from prebake_build.scanning.findings import Finding
from prebake_build.scanning.pinning import pinned, without_default_dtype


@pytest.fixture(autouse=True)
def _no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


def finding(uri: str | None, **changes: str) -> Finding:
    return Finding(function="transformers: X.from_pretrained", uri=uri, class_="transformers:X", **changes)  # type: ignore[arg-type]


def test_what_is_not_pinned_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with HubServer({"config.json": b"{}"}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        found = pinned([finding("hf:acme/tiny"), finding("hf:acme/tiny"), finding("hf:acme/tiny@main")])
        assert [each.uri for each in found] == [f"hf:acme/tiny@{COMMIT}"] * 3
        assert [each.unresolved for each in found] == [None] * 3
        assert len(hub.requests) == 2


@pytest.mark.parametrize("uri", [f"hf:acme/tiny@{COMMIT}", "easyocr:ko+en", "path:tiny", None])
def test_nothing_else_asks_the_hub(uri: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    assert pinned([finding(uri)]) == [finding(uri)]
    assert pinned([finding("hf:acme/tiny", obstacle="remote code")])[0].unresolved is None


def test_an_unreachable_hub_leaves_it_unresolved_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    (found,) = pinned([finding("hf:acme/tiny")])
    assert found.uri == "hf:acme/tiny"
    assert found.unresolved is not None
    assert found.unresolved.startswith("hf:acme/tiny: cannot reach the hub at http://127.0.0.1:1: ")


@pytest.mark.parametrize(
    ("config", "dtype", "kept"),
    [
        ({"dtype": "float16"}, "float16", None),
        ({"torch_dtype": "bfloat16"}, "bfloat16", None),
        ({"dtype": "float16"}, "float32", "float32"),
        ({}, "float32", "float32"),
        (None, "float32", "float32"),
        ([], "float32", "float32"),
    ],
)
def test_a_declared_dtype_is_left_out(tmp_path: Path, config: object, dtype: str, kept: str | None) -> None:
    (tmp_path / "tiny").mkdir()
    if config is not None:
        (tmp_path / "tiny" / "config.json").write_text(json.dumps(config))
    assert without_default_dtype(finding("path:tiny", dtype=dtype), tmp_path).dtype == kept


@pytest.mark.parametrize(
    ("stored", "dtype", "kept"),
    [
        (["float16"], "float16", None),
        (["float16"], "float32", "float32"),
        (["float16", "float32"], "float32", "float32"),
        (["float32", "int64"], "float32", None),
        (["int64"], "float32", "float32"),
    ],
)
def test_a_dtype_that_all_weights_have_is_left_out(
    tmp_path: Path, stored: list[str], dtype: str, kept: str | None
) -> None:
    tensors = {name: torch.zeros(1, dtype=getattr(torch, name)) for name in stored}
    (tmp_path / "tiny").mkdir()
    save_file(tensors, tmp_path / "tiny" / "model.safetensors")
    assert without_default_dtype(finding("path:tiny", dtype=dtype), tmp_path).dtype == kept


def test_weights_that_are_damaged_tell_nothing(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "model.safetensors").write_bytes(b"x")
    assert without_default_dtype(finding("path:tiny", dtype="float32"), tmp_path).dtype == "float32"
