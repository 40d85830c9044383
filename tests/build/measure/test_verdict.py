"""What is made of the samples: a table, the limits that were missed, and what the reader should know."""

from __future__ import annotations

from typing import Any

from prebake.watching.questions import Answer
from prebake_build.measure.compare import Comparison, Sample
from prebake_build.measure.verdict import findings, notes, table


def sample(ready: float, first_request: float = 2.0, peak: float = 1000, answer: str = "a") -> Sample:
    return Sample(ready=ready, first_answer=ready + first_request, first_request=first_request, steady_request=1.0,
                  peak_memory=int(peak * 1e6), anonymous=int(peak * 5e5),
                  answers=(Answer(status=200, type="", body=answer.encode()),), told="GET / answered 200")  # fmt: skip


def comparison(naive: list[Sample], baked: list[Sample]) -> Comparison:
    return Comparison(baseline="naive", candidate="baked", samples={"naive": naive, "baked": baked})


def test_the_table_has_medians_spreads_and_ratios_of_the_pairs() -> None:
    made = comparison([sample(4.0), sample(6.0), sample(5.0)], [sample(2.0), sample(1.5), sample(2.5)])
    assert table(made).splitlines() == [
        "                naive                      baked                      ratio",
        "ready           5.00 s (4.00 to 6.00)      2.00 s (1.50 to 2.50)      0.50 (0.25 to 0.50)",
        "first answer    7.00 s (6.00 to 8.00)      4.00 s (3.50 to 4.50)      0.64 (0.44 to 0.67)",
        "first request   2.00 s (2.00 to 2.00)      2.00 s (2.00 to 2.00)      1.00 (1.00 to 1.00)",
        "steady request  1.00 s (1.00 to 1.00)      1.00 s (1.00 to 1.00)      1.00 (1.00 to 1.00)",
        "peak memory     1,000 MB (1,000 to 1,000)  1,000 MB (1,000 to 1,000)  1.00 (1.00 to 1.00)",
        "private memory  500 MB (500 to 500)        500 MB (500 to 500)        1.00 (1.00 to 1.00)",
    ]


def test_the_typical_start_is_the_lower_median() -> None:
    made = comparison([sample(4.0), sample(1.0), sample(3.0), sample(2.0)], [])
    assert made.typical("naive").ready == 2.0


LIMITS: dict[str, Any] = {"shorter": 30.0, "memory_above": 20.0, "first_request": 5.0}


def test_what_keeps_to_the_limits_has_no_findings() -> None:
    assert findings(comparison([sample(10.0)], [sample(7.0, 5.0, 1200)]), **LIMITS) == []


def test_each_limit_that_is_missed_is_a_sentence() -> None:
    made = comparison([sample(10.0)], [sample(8.0, 6.0, 1300, "b")])
    assert findings(made, **LIMITS) == [
        "ready 20 % sooner than naive, expected at least 30 %",
        "peak memory 30 % above naive's, allowed are 20 %",
        "the first request took 6.00 s, allowed are 5 s",
        "the services gave different answers; --tolerance 1e-5 allows small differences of numbers",
    ]


def test_medians_decide_so_that_one_slow_round_does_not() -> None:
    slow = [sample(10.0), sample(10.0), sample(10.0)]
    assert findings(comparison(slow, [sample(5.0), sample(30.0, 20.0), sample(5.0)]), **LIMITS) == []


def test_a_baseline_that_never_answers_the_same_is_told_so() -> None:
    made = comparison([sample(10.0), sample(10.0, answer="b")], [sample(5.0), sample(5.0)])
    assert findings(made, **LIMITS) == [
        "naive gave different answers at different starts, so they can't be compared: ask for something that is always "
        "the same (a seed), or give --any-answer"
    ]
    assert findings(made, **LIMITS, any_answer=True) == []


def test_numbers_may_differ_if_the_user_allows_it() -> None:
    one, other = [sample(10.0, answer="[1.0, 2]")], [sample(5.0, answer="[1.0000001, 2]")]
    close = Comparison(baseline="naive", candidate="baked", samples={"naive": one, "baked": other}, tolerance=1e-5)
    assert (comparison(one, other).same_answers, close.same_answers) == (False, True)


def test_figures_that_were_not_measured_are_left_out() -> None:
    made = comparison([Sample(ready=4.0)], [Sample(ready=2.0)])
    assert table(made).splitlines() == [
        "       naive                  baked                  ratio",
        "ready  4.00 s (4.00 to 4.00)  2.00 s (2.00 to 2.00)  0.50 (0.50 to 0.50)",
    ]
    assert findings(made, **LIMITS) == []
    assert notes(made) == ["Answers were not compared: no request was sent (--request), and no result read (--result)."]


def test_it_is_said_what_told_that_a_service_was_ready() -> None:
    made = comparison([sample(4.0)], [Sample(ready=2.0, told="GET /health answered 200")])
    assert notes(made) == [
        "naive was ready when GET / answered 200.",
        "baked was ready when GET /health answered 200.",
        "The two were told ready in different ways: name one with --ready, so that both mean the same.",
    ]
