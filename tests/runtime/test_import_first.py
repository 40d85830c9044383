"""What is imported before torch: it needs no torch, and every start of its family imports it anyhow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from prebake.baked.model import BakedModel
from prebake.families.family import family_of
from prebake.loading.models import Models
from prebake.tiers.loader import import_first

FAMILIES = ["transformers", "easyocr", "torch"]


def imported(code: str, *arguments: object) -> set[str]:
    """The modules of a process of its own after it ran the code."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"import sys\n{code}\nprint(*sys.modules)", *map(str, arguments)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return set(done.stdout.split())


@pytest.mark.parametrize("family", FAMILIES)
def test_it_needs_no_torch(family: str) -> None:
    names = family_of(family, "it").without_torch
    found = imported("import importlib\nfor name in sys.argv[1:]: importlib.import_module(name)", *names)
    assert set(names) <= found
    assert not found & {"torch", "transformers", "torchvision", "easyocr"}


@pytest.mark.parametrize("model", ["caption", "florence", "ocr"])
def test_a_start_that_does_not_begin_with_it_imports_it_all_the_same(tiny_models: Path, model: str) -> None:
    names = family_of(BakedModel.open(tiny_models / model).manifest.family, "it").without_torch
    code = "from pathlib import Path\nfrom prebake import load, quickstart\nquickstart.begin()\nload(Path(sys.argv[1]))"
    assert set(names) <= imported(code, tiny_models / model)


def test_what_is_not_installed_is_left_to_who_needs_it(tiny_models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    baked = BakedModel.open(tiny_models / "ocr")
    monkeypatch.setitem(sys.modules, "cv2", None)
    import_first([baked])


def test_a_start_of_all_models_begins_with_those_of_all_families(
    tiny_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(
        "prebake.loading.models.import_first", lambda models, span: asked.append([baked.name for baked in models])
    )
    models = Models(tiny_models)
    assert models["caption"].tier == "mapped"
    assert asked == []
    models.start()
    models.wait(300)
    assert asked == [["caption", "florence", "ocr"]] * 2
