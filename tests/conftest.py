"""Fixtures that more than one test module uses."""

from __future__ import annotations

from pathlib import Path

import pytest

# --- sources, lock and cache -----------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test sees the developer's caches, tokens, mirrors or proxies."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT", "EASYOCR_MIRROR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("PREBAKE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A folder with three small files, one of them in a folder of its own."""
    folder = tmp_path / "checkpoint"
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "weights.bin").write_bytes(b"weights" * 100)
    (folder / "sub" / "extra.txt").write_text("extra")
    return folder
