"""`inspect` of several models is a table with sizes and provenance."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.baked_folders import baked_folder
from helpers.baking import prebake


def test_several_models_are_a_table_with_their_sums(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = baked_folder(tmp_path, "caption", {"w": [1000, 300]})
    second = baked_folder(tmp_path, "ocr", {"a": [500], "b": [500]}, dtype="F16", licence=None)
    code, out, err = prebake(capsys, "inspect", tmp_path)
    assert (code, err) == (0, "")
    rows = [line.split() for line in out.splitlines()]
    size = [sum(file.size for file in baked.manifest.files) for baked in (first, second)]
    assert rows == [
        ["model", "class", "weights", "tensors", "dtypes", "folder", "licence", "source", "revision", "digest"],
        ["caption", "transformers:BertModel", "1.2", "MB", "1", "F32", f"{size[0] / 1e6:.3g}", "MB", "mit",
         "hf:acme/caption", "commit:111111111111", first.manifest.set_digest[:19]],
        ["ocr", "transformers:BertModel", "2", "kB", "2", "F16", f"{size[1] / 1e3:.3g}", "kB", "-", "hf:acme/ocr",
         "commit:111111111111", second.manifest.set_digest[:19]],
        ["2", "models", "1.2", "MB", "3", f"{sum(size) / 1e6:.3g}", "MB"],
    ]  # fmt: skip


def test_one_model_of_them_is_described_in_full(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("caption", "ocr"):
        baked_folder(tmp_path, name)
    _, out, _ = prebake(capsys, "inspect", tmp_path / "ocr")
    assert out.startswith("model       ocr (transformers:BertModel)\nsource      hf:acme/ocr at commit:1111")
