"""The image with its started service: dumped in an ordinary step of the build, restored with no privilege."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from helpers.image_builds import NAME, PYTHON, TINY, TOKEN, Build, ask, bake, remove, run_in, running
from helpers.snapshots import skip_where_there_are_none

pytestmark = pytest.mark.docker

IMAGE = f"{NAME}-snapshot"
HARDENED: dict[str, Any] = {"security_opt": ["no-new-privileges"]}
SERVE = ["serve", "--host", "0.0.0.0", "--port", "8000"]
_STARTUP = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8000/startup').read().decode())"


@pytest.fixture(scope="module")
def snapshot(engine: Any, context: Path, built: Build) -> Iterator[str]:
    """The image's name."""
    skip_where_there_are_none()
    build = bake(context, "snapshot", IMAGE=NAME, MODELS_FILE=TINY, HF_TOKEN=TOKEN)
    assert build.code == 0, build.output
    assert "snapshot: " in build.output and " MB in memory.img" in build.output
    yield IMAGE
    remove(engine, IMAGE)


def how(container: Any) -> tuple[str, str | None] | None:
    """Tier and reason that the container tells; None if it does not know of a snapshot."""
    code, output = container.exec_run([PYTHON, "-c", _STARTUP])
    assert code == 0, output.decode()
    told = json.loads(output).get("snapshot")
    return told and (told["tier"], told["reason"])


def test_it_answers_sealed_what_a_started_service_answers(engine: Any, snapshot: str) -> None:
    with running(engine, snapshot, **HARDENED) as restored, running(engine, NAME) as started:
        assert how(restored) == ("snapshot", None)
        for path in ("/caption", "/ocr", "/florence?task=%3COD%3E"):
            assert ask(restored, path) == ask(started, path)
        restored.stop(timeout=60)
        assert restored.wait()["StatusCode"] == 0


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(
            {"init": True}, marks=pytest.mark.skipif(not shutil.which("docker-init"), reason="no docker-init")
        ),
        {"pids_limit": 64},
        {"mem_limit": "400m"},
        {"nano_cpus": 500_000_000},
    ],
    ids=["init", "pids", "memory", "processors"],
)
def test_limits_and_a_process_before_it_change_nothing(engine: Any, snapshot: str, options: dict[str, Any]) -> None:
    with running(engine, snapshot, **HARDENED, **options) as container:
        assert how(container) == ("snapshot", None)
        assert ask(container, "/ocr")["text"]


def test_containers_of_one_snapshot_run_side_by_side(engine: Any, snapshot: str) -> None:
    with ExitStack() as stack:
        both = [stack.enter_context(running(engine, snapshot, **HARDENED)) for _ in range(2)]
        first, second = (ask(container, "/caption") for container in both)
        assert first == second
        assert [how(container) for container in both] == [("snapshot", None)] * 2


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"environment": {"PREBAKE_SNAPSHOT": "0"}}, None),
        ({"environment": {"PREBAKE_TIERS": "read"}},
         ("ordinary", "PREBAKE_TIERS is set, which it was not for the snapshot")),
        ({"command": [*SERVE, "--lazy"]}, ("ordinary", "--lazy is not what the snapshot was taken with")),
    ],
    ids=["off", "environment", "command"],
)  # fmt: skip
def test_where_it_does_not_fit_the_service_starts_the_ordinary_way(
    engine: Any, snapshot: str, options: dict[str, Any], expected: tuple[str, str] | None
) -> None:
    with running(engine, snapshot, **HARDENED, **options) as container:
        assert how(container) == expected
        log = container.logs().decode()
        assert (f"prebake: the snapshot is not used: {expected and expected[1]}\n" in log) == (expected is not None)
        assert ask(container, "/caption")["caption"]


def test_no_secret_of_the_build_is_in_its_layer(engine: Any, snapshot: str) -> None:
    assert TOKEN not in json.dumps([engine.images.get(snapshot).attrs, engine.images.get(snapshot).history()])
    found = run_in(engine, snapshot, "sh", "-c", f"ls /snapshot; grep -rlF {TOKEN[3:]} /snapshot; :")
    assert found.split() == ["memory.img", "snapshot.json", "table"]
