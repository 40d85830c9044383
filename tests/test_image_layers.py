"""One layer a model, the same in every image, and baked again only when that model changes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from image_builds import MODELS, NAME, TINY, Build, ask, bake, remove, run_in, running
from prebake_build.image import Layer, image_layers

pytestmark = pytest.mark.docker


def weights_of(layers: tuple[Layer, ...]) -> list[str]:
    return [layer.digest for layer in layers[-len(MODELS) :]]


def baked(build: Build) -> list[str]:
    return [step for step in build.ran if "prebake_build.stage bake" in step]


def test_each_model_is_one_layer_and_the_same_in_the_weights_image(engine: Any, built: Build) -> None:
    image, weights = image_layers(engine, NAME), image_layers(engine, f"{NAME}-weights")
    assert len(weights) == len(MODELS)
    assert weights_of(image) == weights_of(weights)


def test_a_second_bake_runs_no_step(built: Build, context: Path) -> None:
    build = bake(context, "image", "baseline", "weights", IMAGE=NAME, MODELS_FILE=TINY)
    assert (build.code, build.ran) == (0, [])


def test_a_changed_line_in_the_service_bakes_nothing_and_changes_no_weights_layer(
    engine: Any, built: Build, context: Path, tmp_path: Path
) -> None:
    changed = shutil.copytree(context, tmp_path / "context")
    for module in ("service", "analyzer", "commands", "metrics", "models"):
        with (changed / f"runtime/prebake/{module}.py").open("a") as file:
            file.write("\nCHANGED = True\n")
    build = bake(changed, "image", IMAGE=f"{NAME}-changed", MODELS_FILE=TINY)
    assert (build.code, baked(build)) == (0, [])
    before, after = image_layers(engine, NAME), image_layers(engine, f"{NAME}-changed")
    assert weights_of(before) == weights_of(after)
    code = [number for number, (old, new) in enumerate(zip(before, after, strict=True)) if old.digest != new.digest]
    assert sum(after[number].size for number in code) < 2_000_000


def test_another_model_changed_or_added_bakes_none_of_the_others(built: Build, context: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(context, tmp_path / "context")
    models = (changed / TINY).read_text().replace("retries = 3", "retries = 4")
    (changed / TINY).write_text(models + '\n[models.extra]\nsource = "dummy:blip-base?size=tiny&seed=7"\n')
    build = bake(changed, "weights-caption", "weights-ocr", MODELS_FILE=TINY)
    assert (build.code, baked(build)) == (0, [])


def test_baking_again_gives_the_same_layers(engine: Any, built: Build, context: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.hcl"
    again.write_text('target "_common" { no-cache-filter = ["bake", "runtime"] }')
    files = ["--file=docker-bake.hcl", f"--file={again}", f"--allow=fs.read={tmp_path}"]
    build = bake(context, "image", *files, IMAGE=f"{NAME}-changed", MODELS=MODELS[0], MODELS_FILE=TINY)
    assert (build.code, len(baked(build))) == (0, 1)
    again_made = [layer.digest for layer in image_layers(engine, f"{NAME}-changed")]
    assert again_made == [layer.digest for layer in image_layers(engine, NAME)[: len(again_made)]]


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
