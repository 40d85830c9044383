"""EasyOCR's reader: what is mapped reads what the ordinary reader reads, quantised or not, and writes nothing."""

from __future__ import annotations

import copy
import json
import logging
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from helpers.runtime_fakes import change_manifest
from image_analyzer.example import example
from prebake import load
from prebake.errors import LoadError
from prebake.families import easyocr as family
from prebake.modules.assembly import slots
from prebake.tiers.loader import TIERS, Tier
from prebake_build.baking.prove import difference_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning"),  # EasyOCR's data loader
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning"),  # the ordinary reader's quantisation
    pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated:DeprecationWarning"),
]


@pytest.fixture(params=[True, False], ids=["quantised", "float"])
def quantized(request: pytest.FixtureRequest) -> bool:
    """EasyOCR's own option, of which both values must read the same as without Prebake."""
    return bool(request.param)


@pytest.fixture
def folder(tiny_models: Path, tmp_path: Path) -> Path:
    """A copy of the baked model that a test may change."""
    shutil.copytree(tiny_models / "ocr", tmp_path / "ocr")
    return tmp_path / "ocr"


@pytest.fixture
def ordinary(tiny_checkpoints: Path, quantized: bool) -> Iterator[Any]:
    """`easyocr.Reader` as everybody makes it, on the checkpoint's own files."""
    import easyocr
    from easyocr.easyocr import detection_models, recognition_models

    place = tiny_checkpoints / "ocr"
    sums = json.loads((place / "md5.json").read_text())
    tables = (detection_models, *recognition_models.values())
    before = copy.deepcopy(tables)
    for table in tables:  # dummies are not in EasyOCR's table of sums
        for entry in table.values():
            entry["md5sum"] = sums.get(entry["filename"], entry["md5sum"])
    yield easyocr.Reader(
        ["ko", "en"], gpu=False, model_storage_directory=str(place), user_network_directory=str(place),
        download_enabled=False, verbose=False, quantize=quantized,
    )  # fmt: skip
    for table, old in zip(tables, before, strict=True):
        table.update(old)


def quantize(folder: Path, quantized: bool) -> None:
    options = json.loads((folder / "manifest.json").read_text())["options"]
    change_manifest(folder, options=options | {"quantize": quantized})


def readings(reader: Any) -> list[tuple[Any, str, float]]:
    pixels = numpy.ascontiguousarray(numpy.asarray(example().crop((40, 40, 360, 140)))[:, :, ::-1])
    return [([[int(x), int(y)] for x, y in box], text, float(sure)) for box, text, sure in reader.readtext(pixels)]


def test_every_tier_reads_what_the_ordinary_reader_reads(folder: Path, ordinary: Any, quantized: bool) -> None:
    quantize(folder, quantized)
    expected = readings(ordinary)
    assert any(text for _, text, _ in expected)
    for tier in TIERS:
        loaded = load(folder, [tier])
        assert (loaded.tier, loaded.fallback_reason) == (tier, None)
        assert readings(loaded.reader) == expected, tier


@pytest.mark.parametrize("quantized", [False], indirect=True)
def test_float_weights_equal_the_ordinary_readers_tensor_by_tensor(folder: Path, ordinary: Any) -> None:
    quantize(folder, False)
    loaded = load(folder)
    expected = {
        f"{part}.{slot.key.removeprefix('module.')}": slot.tensor
        for part in ("detector", "recognizer")
        for slot in slots(getattr(ordinary, part))
    }
    found = {slot.key: slot.tensor for slot in slots(loaded.model)}
    assert found.keys() == expected.keys()
    assert [key for key in expected if difference_of(expected[key], found[key])] == []


def test_the_reader_is_set_up_as_an_ordinary_one(folder: Path, ordinary: Any, quantized: bool) -> None:
    quantize(folder, quantized)
    reader = load(folder).reader
    different = {
        name
        for name in vars(ordinary)
        if isinstance(getattr(ordinary, name), (str, bool, list, dict, int))
        and getattr(ordinary, name) != getattr(reader, name, None)
    }
    assert different <= {"model_storage_directory", "user_network_directory"}
    assert reader.converter.character == ordinary.converter.character
    assert reader.converter.dict == ordinary.converter.dict


def test_quantised_layers_are_quantised_and_others_are_mapped(folder: Path) -> None:
    quantize(folder, True)
    kinds = {type(part).__module__.startswith("torch.ao") for part in load(folder).model.recognizer.modules()}  # type: ignore[union-attr]
    assert kinds == {True, False}
    quantize(folder, False)
    assert not any("quantized" in type(part).__module__ for part in load(folder).model.modules())


def test_loading_leaves_the_folder_and_the_import_path_as_they_are(folder: Path) -> None:
    before, path = {p: p.stat().st_mtime_ns for p in (folder, *folder.rglob("*"))}, list(sys.path)
    load(folder)
    assert {p: p.stat().st_mtime_ns for p in (folder, *folder.rglob("*"))} == before
    assert sys.path == path


def test_a_class_with_a_tensor_more_is_served_by_the_ordinary_tier(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    networks = family.networks

    def newer(options: Any) -> Any:
        module = networks(options)
        module.register_buffer("newer", torch.arange(3.0), persistent=False)
        return module

    monkeypatch.setattr(family, "networks", newer)
    monkeypatch.setattr("prebake.modules.structure.why_not", lambda *_: "another version")
    with caplog.at_level(logging.WARNING, logger="prebake"):
        loaded = load(folder)
    why = "the class as installed differs from the one that was baked: not baked: newer"
    assert (loaded.tier, loaded.fallback_reason) == ("ordinary", f"mapped: {why}")
    assert caplog.messages == [f"ocr: tier mapped failed: {why}"]
    assert any(text for _, text, _ in readings(loaded.reader))


@pytest.mark.parametrize("tier", TIERS)
def test_a_reader_has_no_processor(folder: Path, tier: Tier) -> None:
    with pytest.raises(LoadError, match=r"^ocr: this model of family easyocr was baked without a processor$"):
        load(folder, [tier]).processor  # noqa: B018
