"""The image with its started service: dumped in an ordinary step of the build, restored with no privilege."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from helpers.image_builds import NAME, PYTHON, TINY, TOKEN, Build, ask, bake, remove, run_in, running
from helpers.restore_kills import kill_containers
from helpers.snapshots import skip_where_there_are_none

pytestmark = pytest.mark.docker

IMAGE = f"{NAME}-snapshot"
HARDENED: dict[str, Any] = {"security_opt": ["no-new-privileges"]}
SERVE = ["serve", "--host", "0.0.0.0", "--port", "8000"]
_THREADS = """
import os
children = open("/proc/1/task/1/children").read().split()
print(len(os.listdir(f"/proc/{children[0] if children else 1}/task")))
"""
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
    ],
    ids=["init", "pids", "memory"],
)
def test_limits_and_a_process_before_it_change_nothing(engine: Any, snapshot: str, options: dict[str, Any]) -> None:
    with running(engine, snapshot, **HARDENED, **options) as container:
        assert how(container) == ("snapshot", None)
        assert ask(container, "/ocr")["text"]


@pytest.mark.skipif(not shutil.which("tini-static"), reason="no tini-static (Debian's tini)")
def test_another_init_before_it_changes_nothing(engine: Any, snapshot: str) -> None:
    """What `--init` does, whose program the engine of this machine may lack."""
    program = shutil.which("tini-static")
    entry = ["/tini", "--", *engine.images.get(snapshot).attrs["Config"]["Entrypoint"]]
    mounted = {program: {"bind": "/tini", "mode": "ro"}}
    with running(engine, snapshot, **HARDENED, entrypoint=entry, command=SERVE, volumes=mounted) as container:
        assert how(container) == ("snapshot", None)
        assert ask(container, "/ocr")["text"]
        container.stop(timeout=60)
        assert container.wait()["StatusCode"] == 0


def threads(engine: Any, image: str, **options: Any) -> int:
    """Of the service, after an answer."""
    with running(engine, image, **HARDENED, **options) as container:
        assert ask(container, "/caption")["caption"]
        code, output = container.exec_run([PYTHON, "-c", _THREADS])
        assert code == 0, output.decode()
        return int(output)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one processor")
def test_threads_follow_the_processors_that_it_may_use(engine: Any, snapshot: str) -> None:
    """The build, which dumped it, had all of the machine's."""
    all_of_them, one, half = (
        threads(engine, snapshot, **options)
        for options in (dict[str, Any](), {"cpuset_cpus": "0"}, {"nano_cpus": 500_000_000})
    )
    started = threads(engine, snapshot, cpuset_cpus="0", environment={"PREBAKE_SNAPSHOT": "0"})
    assert one == half == started < all_of_them


def test_no_second_process_is_allowed(engine: Any, snapshot: str) -> None:
    """The service itself needs threads, which count too: it starts the ordinary way and fails as it would anyway."""
    container = engine.containers.run(snapshot, detach=True, pids_limit=1, network_mode="none", **HARDENED)
    try:
        container.wait(timeout=120)
        log = container.logs().decode()
        assert log.startswith("prebake: the snapshot is not used: no process can be started\n"), log
    finally:
        container.remove(force=True)


def test_killed_during_the_restore_it_starts_the_ordinary_way(engine: Any, snapshot: str) -> None:
    """`python -m helpers.restore_kills --image` does this more often."""
    if not Path("/sys/fs/cgroup").is_dir() or os.geteuid() != 0:
        pytest.skip("the engine's processes can't be killed from here")
    assert sum(kill_containers(engine, snapshot, 4, "/ocr").values()) == 4


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
