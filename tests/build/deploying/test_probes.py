"""Probes come from the slowest of the measured starts, and memory from what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.commands import run_command
from prebake.errors import ConfigError
from prebake_build.commands import probes as command
from prebake_build.deploying.probes import Measured, Wanted, grace, settings

MEBIBYTE = 2**20


def sample(**changes: Any) -> dict[str, Any]:
    return {
        "ready": 2.0, "first_answer": 3.0, "first_request": 1.0, "steady_request": 0.5,
        "peak_memory": 900 * MEBIBYTE, "anonymous": 200 * MEBIBYTE, **changes,
    }  # fmt: skip


def written(folder: Path, *samples: dict[str, Any], **changes: Any) -> Path:
    moment = {"rss": 1, "anonymous": 300 * MEBIBYTE, "file": 640 * MEBIBYTE, "peak_rss": 1}
    document = {
        "format": 1, "baseline": "baseline", "candidate": "baked",
        "samples": {"baked": list(samples), "baseline": [sample(ready=9.0)]},
        "timelines": {"baked": {"memory": {"ready": {**moment, "anonymous": 1}, "now": moment}}}, **changes,
    }  # fmt: skip
    path = folder / "startup.json"
    path.write_text(json.dumps(document))
    return path


def measured(**changes: Any) -> Measured:
    values: dict[str, Any] = {"label": "baked", "starts": 5, "ready": 2.0, "request": 1.5, "anonymous": 300 * MEBIBYTE,
              "file": 640 * MEBIBYTE}  # fmt: skip
    return Measured(**(values | changes))


def test_the_slowest_start_and_request_and_the_most_memory_count(tmp_path: Path) -> None:
    path = written(tmp_path, sample(), sample(ready=4.5), sample(first_request=2.5, anonymous=310 * MEBIBYTE))
    assert Measured.read(path) == Measured(
        label="baked", starts=3, ready=4.5, request=2.5, anonymous=310 * MEBIBYTE, file=640 * MEBIBYTE
    )


def test_a_service_without_a_timeline_has_the_rest_of_its_peak_in_files(tmp_path: Path) -> None:
    path = written(tmp_path, sample(), timelines={"baked": None, "baseline": None})
    assert Measured.read(path, "baseline") == Measured(
        label="baseline", starts=1, ready=9.0, request=1.0, anonymous=200 * MEBIBYTE, file=700 * MEBIBYTE
    )


def test_the_startup_probe_allows_the_slowest_start_times_the_margin() -> None:
    probe = settings(measured(ready=12.0), Wanted(margin=2.5))["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] == 30
    assert settings(measured(ready=0.5), Wanted())["startupProbe"]["failureThreshold"] == 10


def test_no_request_is_long_enough_for_the_liveness_probe_to_end_the_process() -> None:
    for seconds in (0.1, 3.0, 25.0, 90.0):
        probe = settings(measured(request=seconds), Wanted(margin=3))["livenessProbe"]
        assert probe["periodSeconds"] * (probe["failureThreshold"] - 1) >= 3 * seconds
        assert 1 <= probe["timeoutSeconds"] <= 10


def test_memory_is_private_memory_times_its_margin_and_the_files_rounded_up() -> None:
    resources = settings(measured(), Wanted(memory_margin=1.5))["resources"]
    assert resources == {"requests": {"memory": "1104Mi"}, "limits": {"memory": "1104Mi"}}  # 300 * 1.5 + 640 = 1090


def test_paths_and_the_port_are_those_of_the_service() -> None:
    found = settings(measured(), Wanted(port=80, ready_path="/health/ready", live_path="/health/live"))
    assert (
        found["readinessProbe"]["httpGet"] == found["startupProbe"]["httpGet"] == {"path": "/health/ready", "port": 80}
    )
    assert found["livenessProbe"]["httpGet"] == {"path": "/health/live", "port": 80}


def test_the_grace_period_is_longer_than_the_drain_and_the_longest_request() -> None:
    assert grace(measured(request=1), Wanted(), 30) == 40
    assert grace(measured(request=20), Wanted(margin=2), 30) == 50


@pytest.mark.parametrize("margin", [0.5, 0, -1, float("nan"), float("inf")])
def test_a_margin_below_1_is_refused(margin: float) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(measured(), Wanted(margin=margin))
    assert str(caught.value) == f"the margin {margin:g} is not a number of at least 1"


# --- the command -------------------------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    return run_command(capsys, command, "probes", *arguments)


def test_yaml_says_where_its_numbers_come_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "--from", written(tmp_path, sample(), sample(ready=4.0)))
    assert (code, err) == (0, "")
    assert out.splitlines()[:3] == [
        "# prebake probes: 2 measured starts of baked",
        "# slowest start 4.00 s, slowest request 1.00 s, times 3",
        "# memory: 300 MiB private times 1.25, and 640 MiB of mapped files",
    ]
    assert yaml.safe_load(out) == settings(measured(ready=4.0, request=1.0), Wanted())


def test_a_patch_names_the_deployment_and_its_container(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, sample())
    _, out, _ = run(capsys, "--from", path, "--patch", "app", "--container", "web", "--json", "--drain", "50")
    document = json.loads(out)
    pod = document["spec"]["template"]["spec"]
    assert (document["kind"], document["metadata"]) == ("Deployment", {"name": "app"})
    assert (pod["terminationGracePeriodSeconds"], pod["containers"][0]["name"]) == (60, "web")
    assert set(pod["containers"][0]) == {"name", "startupProbe", "readinessProbe", "livenessProbe", "resources"}


@pytest.mark.parametrize(
    ("samples", "changes", "code", "message"),
    [([], {}, 1, "samples.baked: is empty (expected at least one start)"),
     ([sample(ready=0)], {}, 1, "samples.baked[0].ready: 0 is not above 0"),
     ([{"ready": 1.0}], {}, 1, "samples.baked[0].first_request: was not measured: send requests "
      "(prebake measure --request): the liveness probe must outlast the longest"),
     ([sample(anonymous=None)], {}, 1, "samples.baked[0].anonymous: was not measured: measure where the service's "
      "memory can be read"),
     ([sample()], {"candidate": "other"}, 2, 'has no service "other" (it has baked, baseline)'),
     ([sample()], {"format": 2}, 1, "format: this comparison of starts has format 2, but this Prebake reads up to 1: "
      "update prebake, or bake again with this version")],
)  # fmt: skip
def test_a_file_that_is_no_comparison_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], samples: list[dict[str, Any]], changes: dict[str, Any],
    code: int, message: str,
) -> None:  # fmt: skip
    path = written(tmp_path, *samples, **changes)
    assert run(capsys, "--from", path) == (code, "", f"prebake: error: {path}: {message}\n")


def test_a_missing_file_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--from", tmp_path / "x.json") == (
        1, "", f"prebake: error: {tmp_path}/x.json: there is no such file (expected a comparison of starts)\n"
    )  # fmt: skip
