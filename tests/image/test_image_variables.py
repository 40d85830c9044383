"""docker-bake.hcl: each variable and target is described, and a wrong value refused with what was expected."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from helpers.image_builds import bake

pytestmark = pytest.mark.docker


def test_the_lint_finds_nothing(context: Path) -> None:
    build = bake(context, "check")
    assert build.code == 0, build.output
    assert build.output.count("Check complete, no warnings found.") == 2


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("MODELS", "caption,,ocr", "MODELS: expected names of models with commas between them, such as \"caption,ocr\" "
                                   "(lower case, digits, '.', '_', '-')."),
        ("MODELS", "caption,caption", "MODELS: a model is listed twice."),
        ("MODELS_FILE", "../models.toml", "MODELS_FILE: expected a path below this folder that ends in .toml, such as "
                                          '"models.dummy.toml".'),
        ("TORCH_INDEX", "cpu", "TORCH_INDEX: expected an address that begins with http:// or https://, or nothing."),
        ("TAG", "prebake:1", "TAG: expected letters, digits, '_', '.' and '-', at most 128 (no image name: that is "
                             "IMAGE)."),
        ("IMAGE", "Prebake", "IMAGE: expected an image's name without a tag, such as "
                             '"registry.example:5000/prebake".'),
        ("WHEELS", "https://index", "WHEELS: expected a folder, its path beginning with / or ./, or nothing."),
        ("READAHEAD", "yes", 'READAHEAD: expected "recorded", or nothing.'),
        ("REVISION", "main", "REVISION: expected a commit's hexadecimal hash, or nothing."),
        ("AIRGAPPED", "yes", 'AIRGAPPED: expected "1", or nothing.'),
        ("SBOM", "yes", 'SBOM: expected "type=sbom", or one with a scanner, "type=sbom,generator=IMAGE", or nothing.'),
        ("CACHE", "registry.example/cache", 'CACHE: expected "type=registry,ref=IMAGE", or a cache of type gha, s3 or '
                                            "azblob, or nothing."),
        ("COMPRESSION", "none", "COMPRESSION: expected uncompressed, zstd, gzip or estargz."),
    ],
)  # fmt: skip
def test_a_wrong_variable_is_refused_with_what_was_expected(
    context: Path, variable: str, value: str, message: str
) -> None:
    build = bake(context, "--print", **{variable: value})
    assert build.code != 0
    assert message in build.output


@pytest.mark.parametrize(("value", "recorded"), [("recorded", True), ("", False)])
def test_a_start_is_recorded_as_the_variable_says(context: Path, value: str, recorded: bool) -> None:
    build = bake(context, "image", "--print", READAHEAD=value)
    assert build.code == 0, build.output
    assert ("prebake check --record-reads /listed/opt/prebake/readahead" in build.output) == recorded


def test_every_variable_and_target_is_described(context: Path) -> None:
    for what in ("variables", "targets"):
        lines = bake(context, f"--list={what}").output.splitlines()
        rows = [re.split(r"\t+", line) for line in lines if "\t" in line][1:]
        assert len(rows) > 5
        assert [row[0] for row in rows if not row[-1].strip() or len(row) < 2] == []


@pytest.mark.parametrize(
    ("cache", "key", "expected"),
    [("type=registry,ref=registry.example/app:cache", "ref", "registry.example/app:cache-{}"),
     ("type=gha", "scope", "{}"), ("type=s3,region=x,bucket=y", "name", "{}")],
)  # fmt: skip
def test_each_target_that_is_built_by_itself_keeps_its_own_result(
    context: Path, cache: str, key: str, expected: str
) -> None:
    build = bake(context, "release", "--print", CACHE=cache)
    assert build.code == 0, build.output
    begin = build.output.index('{\n  "group"')
    targets = json.JSONDecoder().raw_decode(build.output, begin)[0]["target"]  # messages may follow
    assert {"base", "dependencies", "weights-caption", "converter-wheels", "slimmer", "runtime"} < set(targets)
    for name, target in targets.items():
        (to,), (from_,) = target["cache-to"], target["cache-from"]
        assert to == {**from_, "mode": "min"}
        assert to[key] == expected.format("image" if name == "release" else name)
