"""`prebake check` draws a start, holds it against a budget and a baseline, and fails with the model that fails."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.baking import prebake
from helpers.runtime_fakes import bake_module, change_manifest, python
from helpers.serving import Pretended
from prebake.baked.manifest import Loading
from prebake.baked.model import BakedModel
from prebake.baked.warmup import Inputs, Warmup, Zeros
from prebake.commands import check as commands
from prebake.telemetry import timeline
from prebake.telemetry.status import State, Status
from prebake.telemetry.timeline import Memory, Timeline


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Timeline:
    """A start of 2 s to ready, 3 s to the first answer, 900 MB, as if `check` had made it."""
    made = Timeline(birth=0.0)
    for name, at in (("ready", 2.0), ("first answer", 3.0)):
        made.marks[name] = at
        made.memory[name] = Memory(rss=800_000_000, anonymous=300_000_000, file=500_000_000, peak_rss=900_000_000,
                                   minor_faults=10, major_faults=0)  # fmt: skip
    made.spans.append(timeline.Span(name="load", model="caption", start=0.5, end=2.0, thread="t", depth=0))
    monkeypatch.setattr(timeline, "process", made)
    models = Pretended(caption=None)
    models.states["caption"] = State.READY
    monkeypatch.setattr(commands, "start_all", lambda *_: models)
    return made


def test_check_draws_the_start(started: Timeline, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = prebake(capsys, "check")
    assert (code, err) == (0, "")
    assert any(line.split()[:4] == ["load", "caption", "0.500", "1.500"] for line in out.splitlines())
    assert "caption: mapped in 0.250 s\n" in out


def test_check_gives_json(started: Timeline, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(prebake(capsys, "check", "--json", "--ready", "1")[1])
    assert document["start"] == {"ready": 2.0, "first_answer": 3.0, "peak_memory": 900_000_000}
    assert document["over_budget"] == ["ready after 2.00 s, allowed are 1 s"]
    assert (document["baseline"], document["models"]["caption"]["tier"]) == (None, "mapped")


def test_strict_fails_where_a_model_was_not_mapped_or_was_baked_with_other_versions(
    started: Timeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prebake(capsys, "check", "--strict")[::2] == (0, "")
    monkeypatch.setattr(commands, "drifted", lambda models: ["caption: baked with x 1, but 2 is installed"])
    status = Status(name="caption", state=State.READY, required=True, tier="ordinary", seconds=0.1,
                    fallback_reason="no mmap")  # fmt: skip
    monkeypatch.setattr(Pretended, "status", lambda self: (status,))
    assert prebake(capsys, "check")[::2] == (0, "")
    assert prebake(capsys, "check", "--strict", "--warn-only")[::2] == (
        1,
        "prebake: caption: was not mapped: no mmap\n"
        "prebake: version drift: caption: baked with x 1, but 2 is installed\n",
    )


def test_a_version_that_drifted_fails_a_strict_check(
    started: Timeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = bake_module(tmp_path, "net", "helpers.runtime_fakes:plain")
    change_manifest(folder, requires={"no-such-package": "3"})
    models: Any = commands.start_all(tmp_path)
    models.baked.append(BakedModel.open(folder))
    line = (
        "net: baked with no-such-package 3, but none is installed: starts are slower: bake it again with the installed "
        "version, or install no-such-package==3"
    )
    code, out, err = prebake(capsys, "check", "--json")
    assert (code, json.loads(out)["drift"], err) == (0, [line], "")
    code, _, err = prebake(capsys, "check", "--strict", "--warn-only")
    assert (code, err) == (1, f"prebake: version drift: {line}\n")
    models.baked.clear()
    assert prebake(capsys, "check", "--strict")[0] == 0


FINDINGS = {
    "ready": "ready after 2.00 s, allowed are 1.5 s",
    "first-answer": "first answer after 3.00 s, allowed are 2.5 s",
    "peak-memory": "peak memory 900 MB, allowed are 800 MB",
    "shorter": "ready 50 % sooner than the baseline (2.00 s against 4.00 s), expected at least 60 %",
    "memory-above": "peak memory 50 % above the baseline's (900 MB against 600 MB), allowed are 20 %",
}
LIMITS = {"ready": "1.5", "first-answer": "2.5", "peak-memory": "800 MB", "shorter": "60", "memory-above": "20"}
KEPT = {"ready": "2", "first-answer": "3", "peak-memory": "900 MB", "shorter": "50", "memory-above": "50"}


@pytest.fixture
def baseline(tmp_path: Path) -> Path:
    path = tmp_path / "baseline.json"
    path.write_text('{"format": 1, "ready": 4.0, "first_answer": 6, "peak_memory": 600000000}')
    return path


@pytest.mark.parametrize("limit", LIMITS)
def test_each_limit_that_is_exceeded_is_a_finding(
    started: Timeline, baseline: Path, capsys: pytest.CaptureFixture[str], limit: str
) -> None:
    asked = ("check", "--baseline", baseline, f"--{limit}")
    assert prebake(capsys, *asked, LIMITS[limit])[::2] == (1, f"prebake: over budget: {FINDINGS[limit]}\n")
    assert prebake(capsys, *asked, LIMITS[limit], "--warn-only")[::2] == (
        0, f"prebake: over budget: {FINDINGS[limit]}\n"
    )  # fmt: skip
    assert prebake(capsys, *asked, KEPT[limit])[::2] == (0, "")


def test_a_budget_file_holds_all_limits_and_options_override_it(
    started: Timeline, baseline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    budget = tmp_path / "budget.toml"
    lines = [f'{key.replace("-", "_")} = {value if "M" not in value else json.dumps(value)}'
             for key, value in LIMITS.items()]  # fmt: skip
    budget.write_text("\n".join(lines))
    code, out, err = prebake(capsys, "check", "--budget", budget, "--baseline", baseline)
    assert code == 1
    assert sorted(err.splitlines()) == sorted(f"prebake: over budget: {finding}" for finding in FINDINGS.values())
    assert out.endswith("\nready after 2.00 s, 0.50 of the baseline's 4.00 s\n")
    overrides = [part for limit, value in KEPT.items() for part in (f"--{limit}", value)]
    assert prebake(capsys, "check", "--budget", budget, "--baseline", baseline, *overrides)[::2] == (0, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shorter", "30"], "the budget has limits relative to a baseline: pass its file with --baseline"),
        (["--peak-memory", "much"], '--peak-memory: "much" is not a size (expected for example "1.5 GB" or "512 MiB")'),
        (["--budget", "no.toml"], "no.toml: cannot read this budget: No such file or directory"),
        (["--save", "no/folder.json"], "no/folder.json: cannot write it: No such file or directory"),
        (["--trace", "no/folder.json"], "no/folder.json: cannot write it: No such file or directory"),
        (["--html", "no/start.html"], "no/start.html: cannot write it: No such file or directory"),
    ],
)
def test_a_wrong_budget_is_wrong_use(
    started: Timeline, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    arguments: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    code, _, err = prebake(capsys, "check", *arguments)
    assert (code, err) == (2, f"prebake: error: {message}\n")


def test_a_saved_start_is_the_baseline_of_a_later_one(
    started: Timeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prebake(capsys, "check", "--save", tmp_path / "start.json")[0] == 0
    assert json.loads((tmp_path / "start.json").read_text())["ready"] == 2.0
    started.marks["ready"] = 1.0
    code, out, _ = prebake(capsys, "check", "--baseline", tmp_path / "start.json", "--shorter", "50")
    assert (code, out.splitlines()[-1]) == (0, "ready after 1.00 s, 0.50 of the baseline's 2.00 s")


def test_the_trace_is_what_perfetto_opens(
    started: Timeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prebake(capsys, "check", "--trace", tmp_path / "trace.json")[0] == 0
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert {event["ph"] for event in events} == {"M", "X", "i"}
    (load,) = [event for event in events if event["ph"] == "X"]
    assert (load["name"], load["cat"], load["ts"], load["dur"]) == ("load", "caption", 500_000, 1_500_000)


def test_the_page_has_the_drawing_the_models_and_the_ratio(
    started: Timeline, baseline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prebake(capsys, "check", "--baseline", baseline, "--html", tmp_path / "start.html")[0] == 0
    page = (tmp_path / "start.html").read_text()
    assert '<p class="headline">ready after 2.00 s, 0.50 of the baseline&#x27;s 4.00 s</p>' in page
    assert "<title>caption load: 1.500 s</title>" in page
    assert "<tr><th>caption</th><td>ready</td><td>mapped</td><td>0.250</td><td></td></tr>" in page


def test_check_starts_the_models_and_asks_one_question(tiny_models: Path, tmp_path: Path) -> None:
    root = tmp_path / "models"
    for name in ("caption", "florence"):
        shutil.copytree(tiny_models / name, root / name)
    done = subprocess.run(
        [sys.executable, "-m", "prebake", "check", "--root", str(root), "--json", "--ready", "600",
         "--trace", str(tmp_path / "trace.json"), "--save", str(tmp_path / "start.json")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    document = json.loads(done.stdout)
    assert {name: model["tier"] for name, model in document["models"].items()} == {
        "caption": "mapped", "florence": "mapped"
    }  # fmt: skip
    assert document["marks"]["ready"] <= document["marks"]["first answer"]
    assert (document["over_budget"], document["start"]) == (
        [], {key: value for key, value in json.loads((tmp_path / "start.json").read_text()).items() if key != "format"}
    )  # fmt: skip
    assert any(span["name"] == "first answer" and span["model"] == "caption" for span in document["spans"])
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]


def test_check_fails_with_the_model_that_fails(tagger: Path, tmp_path: Path) -> None:
    root = shutil.copytree(tagger, tmp_path / "models")
    (root / "tagger" / "buffers.safetensors").unlink()
    done = subprocess.run(
        [sys.executable, "-m", "prebake", "check", "--root", str(root)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith(
        f"prebake: error: {root}/tagger: differs from its manifest:\n"
        "  buffers.safetensors: missing\nBake or pull this model again.\n"
    )


# --- warm-ups ----------------------------------------------------------------------------------------------------


@pytest.fixture
def warm_root(tmp_path: Path) -> Path:
    """Three models, of which `b` and `c` declare warm-ups."""
    warmups: dict[str, Warmup | None] = {
        "a": None, "b": Inputs(values={"input": Zeros(shape=(1, 4))}), "c": "helpers.warmups:note"
    }  # fmt: skip
    for name, warmup in warmups.items():
        bake_module(tmp_path / "models", name, "helpers.runtime_fakes:plain", loading=Loading(warmup=warmup))
    return tmp_path / "models"


def check(root: Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own, where the installed service has no use for these models."""
    return python("import sys; from prebake.__main__ import main; sys.exit(main(sys.argv[1:]))",
                  "check", "--root", root, "--json", "--first-answer", "600")  # fmt: skip


def test_the_first_warm_up_is_the_first_answer_where_no_service_answers(warm_root: Path) -> None:
    done = check(warm_root)
    assert (done.returncode, "prebake:" in done.stderr) == (0, False)
    document = json.loads(done.stdout)
    b, c = (span for span in document["spans"] if span["name"] == "warm up")
    assert (b["model"], c["model"]) == ("b", "c")
    assert document["marks"]["ready"] <= b["start"]
    assert b["end"] <= document["marks"]["first answer"] <= c["start"]


def test_nothing_answers_where_no_model_declares_a_warm_up(warm_root: Path) -> None:
    for name in "bc":
        shutil.rmtree(warm_root / name)
    done = check(warm_root)
    assert done.returncode == 1
    assert done.stderr.splitlines()[1:] == ["prebake: over budget: no first answer was measured, allowed are 600 s"]


def test_check_fails_with_the_warm_up_that_fails(warm_root: Path) -> None:
    change_manifest(warm_root / "a", loading={"warmup": "helpers.warmups:failing"})
    done = check(warm_root)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith("prebake: error: a: its warm-up failed: RuntimeError: no picture at hand\n")


@pytest.mark.parametrize(("answers", "expected"), [("a", []), (None, ["b", "c"])])
def test_a_service_that_answers_comes_first(
    warm_root: Path, monkeypatch: pytest.MonkeyPatch, answers: str | None, expected: list[str]
) -> None:
    for name in ("begin", "collector.pause", "collector.resume"):
        monkeypatch.setattr(f"prebake.startup.quickstart.{name}", lambda *_: None)
    before = len(timeline.process.spans)
    service: Any = SimpleNamespace(answer=lambda models: answers)
    commands.start_all(warm_root, service)
    assert [span.model for span in timeline.process.spans[before:] if span.name == "warm up"] == expected
