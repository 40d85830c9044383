"""The naive service is the same service, started as it was before Prebake: same answers, other start."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.baking import TESTS, declare, names
from helpers.serving import Process, ask, picture
from image_analyzer import naive
from prebake.errors import ConfigError, UnknownModelError
from prebake_build.commands.fetch import fetch
from prebake_build.files.digest import md5_of

PICTURE = picture(size=(320, 240))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny models' checkpoints where their frameworks expect them."""
    folder = tmp_path_factory.mktemp("naive")
    fetch(TESTS / "helpers" / "models.tiny.toml", [], folder / "checkpoints", folder / "cache")
    return folder / "checkpoints"


@pytest.fixture(scope="module")
def service(checkpoints: Path) -> Iterator[Process]:
    with Process("--checkpoints", checkpoints, module="image_analyzer.naive") as process:
        process.until_ready()
        yield process


def test_checkpoints_are_prepared_as_a_download_leaves_them(checkpoints: Path) -> None:
    assert names(checkpoints) == ["caption", "florence", "ocr"]
    assert (checkpoints / "caption" / "pytorch_model.bin").is_file()
    assert names(checkpoints / "ocr") == ["craft_mlt_25k.pth", "korean_g2.pth", "md5.json"]
    sums = json.loads((checkpoints / "ocr" / "md5.json").read_text())
    assert sums == {name: md5_of(checkpoints / "ocr" / name) for name in ("craft_mlt_25k.pth", "korean_g2.pth")}


def test_what_was_prepared_before_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "config.json").write_text("{}")
    models = declare(tmp_path, '[models.m]\nsource = "path:c"\n')
    (tmp_path / "out" / "m").mkdir(parents=True)
    (tmp_path / "out" / "m" / "old").touch()
    fetch(models, [], tmp_path / "out", tmp_path / "cache")
    assert names(tmp_path / "out" / "m") == ["config.json"]


@pytest.mark.parametrize("path", ["/caption", "/ocr", "/florence?task=%3COD%3E", "/florence", "/analyze"])
def test_baked_and_naive_give_the_same_answers(running: Process, service: Process, path: str) -> None:
    baked, plain = (ask(each.url, path, PICTURE) for each in (running, service))
    assert baked == plain
    assert baked[0] == 200


def test_every_model_is_there_when_the_port_opens(service: Process) -> None:
    startup = ask(service.url, "/startup")[1]
    assert {name: model["tier"] for name, model in startup["models"].items()} == dict.fromkeys(
        ("caption", "florence", "ocr"), "ordinary"
    )
    assert max(span["end"] for span in startup["spans"]) <= startup["marks"]["port open"]


def test_nothing_is_put_off_and_nothing_is_kept(service: Process) -> None:
    assert ask(service.url, "/startup")[1]["deferred"] == {}


def test_it_ends_well(checkpoints: Path, tmp_path: Path) -> None:
    (tmp_path / "florence").symlink_to(checkpoints / "florence")
    with Process("--checkpoints", tmp_path, module="image_analyzer.naive") as process:
        process.until_ready()
        assert ask(process.url, "/caption", PICTURE) == (
            404, {"error": "there is no model caption (there are: florence)"}
        )  # fmt: skip
        assert process.stop() == 0


def test_a_folder_without_checkpoints_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert naive.main(["--checkpoints", str(tmp_path)]) == 2
    assert capsys.readouterr().err.endswith(
        f"naive: error: {tmp_path}: holds no checkpoint (run: prebake fetch --output {tmp_path})\n"
    )


def test_florence_is_tried_three_times(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tries: list[Path] = []

    def fail(model: Any, processor: Any, folder: Path) -> None:
        tries.append(folder)
        raise OSError("not yet")

    monkeypatch.setattr(naive, "_transformers", fail)
    with pytest.raises(OSError, match=r"^not yet$"):
        naive._three_tries(tmp_path)
    assert tries == [tmp_path] * 3


def test_a_model_that_is_not_declared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError):
        fetch(declare(tmp_path, '[models.m]\nsource = "path:c"\n'), ["n"], tmp_path / "out")
    with pytest.raises(ConfigError):
        fetch(tmp_path / "no.toml", [], tmp_path / "out")
