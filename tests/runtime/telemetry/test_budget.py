"""Budgets: what is over the limit is said with both figures; what is no budget is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prebake.errors import ConfigError, DocumentError
from prebake.telemetry.budget import Budget, Start, exceeded
from prebake.telemetry.timeline import FIRST_ANSWER, READY, Memory, Timeline

START = Start(ready=2.0, first_answer=4.0, peak_memory=600_000_000)
BASELINE = Start(ready=4.0, first_answer=8.0, peak_memory=500_000_000)


@pytest.mark.parametrize(
    ("budget", "finding"),
    [
        (Budget(ready=1.5), "ready after 2.00 s, allowed are 1.5 s"),
        (Budget(first_answer=3), "first answer after 4.00 s, allowed are 3 s"),
        (Budget(peak_memory=599_000_000), "peak memory 600 MB, allowed are 599 MB"),
        (Budget(shorter=51), "ready 50 % sooner than the baseline (2.00 s against 4.00 s), expected at least 51 %"),
        (Budget(memory_above=19), "peak memory 20 % above the baseline's (600 MB against 500 MB), allowed are 19 %"),
    ],
)
def test_each_limit_that_is_broken_is_a_sentence(budget: Budget, finding: str) -> None:
    assert exceeded(START, budget, BASELINE) == [finding]


def test_a_limit_that_is_just_met_is_kept() -> None:
    budget = Budget(ready=2.0, first_answer=4.0, peak_memory=600_000_000, shorter=50, memory_above=20.0001)
    assert exceeded(START, budget, BASELINE) == []


def test_every_broken_limit_is_told() -> None:
    assert (
        len(exceeded(START, Budget(ready=1, first_answer=1, peak_memory=1, shorter=99, memory_above=0), BASELINE)) == 5
    )


def test_an_empty_budget_allows_anything() -> None:
    assert exceeded(START, Budget()) == []


def test_a_first_answer_that_was_not_measured_breaks_its_limit() -> None:
    start = Start(ready=1, first_answer=None, peak_memory=1)
    assert exceeded(start, Budget(first_answer=5)) == ["no first answer was measured, allowed are 5 s"]


def test_a_comparison_without_a_baseline_is_refused() -> None:
    for budget in (Budget(shorter=30), Budget(memory_above=20)):
        with pytest.raises(ConfigError) as error:
            exceeded(START, budget)
        assert str(error.value) == "the budget has limits relative to a baseline: pass its file with --baseline"


def test_a_budget_file_gives_every_limit(tmp_path: Path) -> None:
    path = tmp_path / "budget.toml"
    path.write_text('ready = 3\nfirst_answer = 5.0\npeak_memory = "1.5 GB"\nshorter = 30\nmemory_above = 20\n')
    budget = Budget.read(path)
    assert budget == Budget(ready=3, first_answer=5, peak_memory=1_500_000_000, shorter=30, memory_above=20)
    assert budget.needs_baseline


def test_options_replace_the_limits_they_name(tmp_path: Path) -> None:
    budget = Budget(ready=3, shorter=30).with_limits(ready=1.0, shorter=None, peak_memory=5)
    assert budget == Budget(ready=1.0, shorter=30, peak_memory=5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("redy = 3", 'redy: unknown key: did you mean "ready"?'),
        ('ready = "3"', 'ready: expected a number, found the string "3"'),
        ("ready = true", "ready: expected a number, found true or false (True)"),
        ("ready = -1", "ready: -1 is negative"),
        ("ready = nan", "ready: nan is not a limit"),
        ("peak_memory = 5", "peak_memory: expected a string, found a whole number (5)"),
        ('peak_memory = "5 apples"',
         'peak_memory: "5 apples" is not a size (expected for example "1.5 GB" or "512 MiB")'),
        ("ready = ", "this budget is not TOML: Invalid value (at end of document)"),
    ],
)  # fmt: skip
def test_what_is_no_budget_is_refused_with_the_path(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "budget.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        Budget.read(path)
    assert str(error.value) == f"{path}: {message}"


@pytest.mark.parametrize("body", [b"ready = \xff", b"ready = " + b"1" * 5000, None])
def test_what_cannot_be_read_is_refused(tmp_path: Path, body: bytes | None) -> None:
    path = tmp_path / "budget.toml"
    if body is not None:
        path.write_bytes(body)
    with pytest.raises(ConfigError):
        Budget.read(path)


@given(st.floats(0.001, 1e6), st.none() | st.floats(0.001, 1e6), st.integers(1, 2**50))
def test_a_recorded_start_is_read_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, ready: float, first_answer: float | None, peak: int
) -> None:
    start = Start(ready=ready, first_answer=first_answer, peak_memory=peak)
    path = tmp_path_factory.getbasetemp() / "start.json"
    path.write_text(start.text)
    assert Start.read(path) == start


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format": 1, "ready": 0, "first_answer": null, "peak_memory": 5}', "ready: 0 is not above 0"),
        (
            '{"format": 1, "ready": 1, "first_answer": null, "peak_memory": 0}',
            "peak_memory: 0 is not above 0",
        ),
        (
            '{"format": 1, "ready": 1, "peak_memory": 1, "seconds": 1}',
            "seconds: unknown key (known: format, ready, first_answer, peak_memory)",
        ),
        ('{"format": 1, "peak_memory": 1}', "ready: is missing (expected a number)"),
    ],
)
def test_what_is_no_recorded_start_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "start.json"
    path.write_text(text)
    with pytest.raises(DocumentError) as error:
        Start.read(path)
    assert str(error.value) == f"{path}: {message}"


def test_the_start_of_a_timeline_is_its_marks_and_highest_peak() -> None:
    def memory(peak: int) -> Memory:
        return Memory(rss=1, anonymous=1, file=0, peak_rss=peak, minor_faults=0, major_faults=0)

    spans = Timeline(marks={READY: 1.0, FIRST_ANSWER: 2.0}, memory={READY: memory(5), FIRST_ANSWER: memory(7)})
    assert Start.of(spans) == Start(ready=1.0, first_answer=2.0, peak_memory=7)
    spans = Timeline(marks={READY: 1.0}, memory={READY: memory(5)})
    assert Start.of(spans) == Start(ready=1.0, first_answer=None, peak_memory=5)
