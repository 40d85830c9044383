"""`easyocr.Reader(…)`: the library's own object with mapped networks, whatever the reader's other arguments."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from helpers.hooked import Hooked
from image_analyzer.example import example
from prebake.adopt.hooks import easyocr as easyocr_hook
from prebake.errors import ConfigError

pytestmark = [
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning"),  # EasyOCR's data loader
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning"),  # the ordinary reader's quantisation
    pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated:DeprecationWarning"),
]

NETWORKS = {"detector", "recognizer", "converter", "model_storage_directory", "user_network_directory"}
"""Attributes that are compared by what they do, or are where the user has them."""


@pytest.fixture
def sums(tiny_checkpoints: Path) -> Iterator[Path]:
    """The checkpoint, whose files EasyOCR's tables do not know."""
    from easyocr.easyocr import detection_models, recognition_models

    place = tiny_checkpoints / "ocr"
    known = json.loads((place / "md5.json").read_text())
    tables = (detection_models, *recognition_models.values())
    before = copy.deepcopy(tables)
    for table in tables:
        for entry in table.values():
            entry["md5sum"] = known.get(entry["filename"], entry["md5sum"])
    yield place
    for table, old in zip(tables, before, strict=True):
        table.update(old)


@pytest.fixture
def hooked(monkeypatch: pytest.MonkeyPatch, tiny_models: Path) -> Hooked:
    import easyocr

    found = Hooked(monkeypatch)
    found.install(easyocr_hook, easyocr.easyocr, [(easyocr.Reader, "__init__")])
    found.serve(tiny_models)
    return found


def reader(**options: Any) -> Any:
    import easyocr

    return easyocr.Reader(**{"lang_list": ["ko", "en"], "gpu": False, "verbose": False, **options})


def read(found: Any) -> Any:
    return found.readtext(numpy.array(example().convert("RGB")), workers=0)


def plain(found: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(found).items() if name not in NETWORKS}


@pytest.mark.parametrize("quantize", [True, False], ids=["quantised", "float"])
def test_a_reader_is_mapped(sums: Path, hooked: Hooked, monkeypatch: pytest.MonkeyPatch, quantize: bool) -> None:
    monkeypatch.setenv("PREBAKE", "0")
    expected = _ordinary(hooked, sums, quantize)
    found = reader(quantize=quantize)
    assert hooked.outcome == ("mapped", "ocr", None)
    assert hooked.load.detail == {"languages": ["ko", "en"]} | ({} if quantize else {"quantize": False})
    assert type(found) is type(expected)
    assert plain(found) == plain(expected)
    assert found.converter.character == expected.converter.character
    assert read(found) == read(expected)


def _ordinary(hooked: Hooked, sums: Path, quantize: bool) -> Any:
    from prebake.adopt.loads import inside

    with inside():  # as without a hook
        return reader(quantize=quantize, model_storage_directory=str(sums), user_network_directory=str(sums))


def test_languages_may_stand_in_another_order(hooked: Hooked) -> None:
    reader(lang_list=["en", "ko"])
    assert hooked.outcome == ("mapped", "ocr", None)
    assert hooked.load.uri == "easyocr:en+ko"


def test_nothing_is_written_and_the_folders_are_those_of_the_library(
    hooked: Hooked, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("easyocr.config.MODULE_PATH", str(tmp_path / "home"))
    found = reader()
    assert found.model_storage_directory == f"{tmp_path}/home/model"
    assert found.user_network_directory == f"{tmp_path}/home/user_network"
    assert list(tmp_path.iterdir()) == []


def test_parts_can_be_left_out(hooked: Hooked) -> None:
    found = reader(recognizer=False)
    assert hooked.outcome == ("mapped", "ocr", None)
    assert hasattr(found, "detector")
    assert not hasattr(found, "recognizer")


def test_a_reader_without_networks_is_no_load(hooked: Hooked) -> None:
    reader(detector=False, recognizer=False)
    assert hooked.loads == []


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"detect_network": "dbnet18"}, "detect_network='dbnet18'"),
        ({"recog_network": "latin_g1"}, "recog_network='latin_g1'"),
        ({"lang_list": ["fr"]}, "baked: "),
    ],
)
def test_strict_refuses_other_networks(hooked: Hooked, options: dict[str, Any], why: str) -> None:
    hooked.strict()
    with pytest.raises(ConfigError) as caught:
        reader(**options)
    uri = "easyocr:" + "+".join(options.get("lang_list", ["ko", "en"]))
    assert str(caught.value).startswith(f"{uri}: is not baked, and PREBAKE_STRICT=1 refuses it ({why}")


def test_on_another_device_networks_are_parallel(hooked: Hooked) -> None:
    network = easyocr_hook._placed(torch.nn.Linear(2, 2), "meta")
    assert type(network) is torch.nn.DataParallel
    assert (network.module.weight.device.type, network.training) == ("meta", False)
