"""One layer a model, the same in every image, and baked again only when that model changes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from helpers.image_builds import MODELS, NAME, PYTHON, TINY, Build, ask, bake, remove, run_in, running
from prebake.startup.readahead import parse
from prebake_build.images.engine import Layer, image_layers

pytestmark = pytest.mark.docker


def weights_of(layers: tuple[Layer, ...]) -> list[str]:
    return [layer.digest for layer in layers[-len(MODELS) :]]


def lists_last(layers: tuple[Layer, ...]) -> list[Layer]:
    """The layer of the list of what a start reads, and then all others."""
    return sorted(layers, key=lambda layer: "/listed" not in layer.created_by)


def baked(build: Build) -> list[str]:
    return [
        step
        for step in build.ran
        if "prebake_build.baking.stage fetch" in step or "prebake_build.baking.stage bake" in step
    ]


def test_each_model_is_one_layer_and_the_same_in_the_weights_image(engine: Any, built: Build) -> None:
    image, weights = image_layers(engine, NAME), image_layers(engine, f"{NAME}-weights")
    assert len(weights) == len(MODELS)
    assert weights_of(image) == weights_of(weights)


def test_a_second_bake_runs_no_step(built: Build, context: Path) -> None:
    build = bake(context, "image", "baseline", "weights", IMAGE=NAME, MODELS_FILE=TINY)
    assert (build.code, build.ran) == (0, [])


ABOVE_THE_LINE = (
    "service/image_analyzer/service.py", "service/image_analyzer/analyzer.py", "runtime/prebake/commands/check.py",
    "runtime/prebake/loading/models.py", "runtime/prebake/telemetry/timeline.py",
    "runtime/prebake/startup/quickstart.py", "build/prebake_build/commands/bake.py",
    "build/prebake_build/measure/compare.py",
)  # fmt: skip
"""Modules of the rooms that decide no byte of a baked model (docs/overview.md)."""


def test_a_changed_line_in_the_service_bakes_nothing_and_changes_no_weights_layer(
    engine: Any, built: Build, context: Path, tmp_path: Path
) -> None:
    changed = shutil.copytree(context, tmp_path / "context")
    for module in ABOVE_THE_LINE:
        with (changed / module).open("r+") as file:  # each exists
            file.seek(0, os.SEEK_END)
            file.write("\nCHANGED = True\n")
    build = bake(changed, "image", IMAGE=f"{NAME}-changed", MODELS_FILE=TINY)
    assert (build.code, baked(build)) == (0, [])
    before, after = image_layers(engine, NAME), image_layers(engine, f"{NAME}-changed")
    assert weights_of(before) == weights_of(after)
    code = [number for number, (old, new) in enumerate(zip(before, after, strict=True)) if old.digest != new.digest]
    assert sum(after[number].size for number in code) < 4_000_000


def test_another_model_changed_or_added_bakes_none_of_the_others(built: Build, context: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(context, tmp_path / "context")
    models = (changed / TINY).read_text().replace("retries = 3", "retries = 4")
    (changed / TINY).write_text(models + '\n[models.extra]\nsource = "dummy:blip-base?size=tiny&seed=7"\n')
    build = bake(changed, "weights-caption", "weights-ocr", MODELS_FILE=TINY)
    assert (build.code, baked(build)) == (0, [])


def test_baking_again_gives_the_same_layers(engine: Any, built: Build, context: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.hcl"
    again.write_text(
        'target "_common" {\n  no-cache-filter = ["bake", "slim", "runtime"]\n'
        '  args = { PREBAKE_CONVERTED_SIZE = "0" }\n}'
    )
    files = [
        "--file=docker-bake.hcl",
        "--file=docker-bake.override.hcl",
        f"--file={again}",
        f"--allow=fs.read={tmp_path}",
    ]
    build = bake(context, "image", *files, IMAGE=f"{NAME}-changed", MODELS=MODELS[0], MODELS_FILE=TINY, READAHEAD="")
    assert (build.code, len(baked(build))) == (0, 1), build.output
    again_made = [layer.digest for layer in image_layers(engine, f"{NAME}-changed")]
    listed, *others = lists_last(image_layers(engine, NAME))
    assert again_made == [layer.digest for layer in others[: len(again_made)]]
    assert listed.digest not in again_made


def test_what_a_start_reads_is_listed_in_a_small_layer_below_the_weights(engine: Any, built: Build) -> None:
    layers = image_layers(engine, NAME)
    listed, *_ = lists_last(layers)
    assert (layers.index(listed), listed.size < 1_000_000) == (len(layers) - len(MODELS) - 1, True)
    parts = parse(run_in(engine, NAME, "cat", "/opt/prebake/readahead").splitlines())
    entries = [entry for part, _ in parts for entry in part]
    assert "torch._C" in [module for _, module in parts]
    paths = [path for path, _ in entries]
    there = run_in(engine, NAME, PYTHON, "-c", "import os, sys; print(all(map(os.path.exists, sys.argv[1:])))", *paths)
    assert there == "True\n"
    assert any(path.endswith("/torch/") for path in paths)
    assert {f"/models/{model}/manifest.json" for model in MODELS} <= set(paths)
    (torch, *_) = (ranges for path, ranges in entries if path.endswith("/libtorch_cpu.so"))
    assert 10_000_000 < sum(length for _, length in torch) < 150_000_000  # of 430: touched, not mapped


def test_weights_are_readable_by_everyone_owned_by_root_and_carry_no_time(engine: Any, built: Build) -> None:
    lines = run_in(engine, NAME, "find", "/models", "-printf", "%y %m %U:%G %T@ %p\n").splitlines()
    assert {line.rpartition(" ")[0] for line in lines} == {"d 755 0:0 0.0000000000", "f 644 0:0 0.0000000000"}
    assert len(lines) > 12


@pytest.mark.full
def test_the_full_size_dummies_make_an_image_that_captions(engine: Any, context: Path) -> None:
    image = f"{NAME}-full"
    build = bake(context, "image", IMAGE=image, MODELS_FILE="models.dummy.toml")
    try:
        assert build.code == 0, build.output
        assert sum(layer.size for layer in image_layers(engine, image)[-len(MODELS) :]) > 1_500_000_000
        with running(engine, image) as container:
            assert ask(container, "/caption")["caption"]
    finally:
        remove(engine, image)
