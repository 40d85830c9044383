"""`prebake measure` of two images: what their containers are given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers.baking import prebake
from prebake_build.commands import measure as command
from prebake_build.measure.compare import Ask, Comparison, Launcher


@pytest.fixture
def launchers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The launchers of containers that would be compared."""
    found: list[Any] = []

    def compare(baseline: Launcher, candidate: Launcher, ask: Ask, **_: Any) -> Comparison:
        from prebake.errors import PrebakeError

        found.extend([baseline, candidate])
        raise PrebakeError("enough")

    monkeypatch.setattr("prebake_build.images.engine.open_engine", lambda: "the engine")
    monkeypatch.setattr(command, "compare", compare)
    monkeypatch.chdir(tmp_path)
    return found


def test_containers_get_their_options(tmp_path: Path, launchers: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    prebake(capsys, "measure", "--image", "a", "--baseline", "b", "--no-baseline-sealed", "--port", "9000",
            "--env", "A=1", "--volume", "./data:/data:ro", "--docker-option", "mem_limit=2g",
            "--baseline-docker-option", "user=0", "--image-docker-option", "user=12345")  # fmt: skip
    baseline, image = launchers
    assert (baseline.label, baseline.sealed, baseline._port) == ("baseline", False, 9000)
    assert (image.label, image.sealed, image._port) == ("baked", None, 9000)
    shared = {"environment": ["A=1"], "volumes": [f"{tmp_path}/data:/data:ro"], "mem_limit": "2g"}
    assert (baseline._options, image._options) == (shared | {"user": 0}, shared | {"user": 12345})


def test_the_port_of_the_project_is_that_of_the_containers(
    tmp_path: Path, launchers: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prebake.toml").write_text("port = 7000\ncommand = 'x'\n")
    prebake(capsys, "measure", "--image", "a", "--baseline", "b", "--sealed")
    assert [(launcher._port, launcher.sealed) for launcher in launchers] == [(7000, None), (7000, True)]
