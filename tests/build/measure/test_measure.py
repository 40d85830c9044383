"""Two services are started in turn, and compared by what they did; nothing is left running."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from prebake.errors import PrebakeError
from prebake.telemetry.services import Request
from prebake.watching.proc import Memory
from prebake.watching.questions import Answer, HttpQuestion, Question
from prebake.watching.readiness import AtUrl, Told
from prebake_build.measure.compare import STEADY, Ask, Comparison, Sample, compare, measure
from prebake_build.measure.verdict import findings, notes, table

STARTUP = {"memory": {}, "marks": {"ready": 1.0}, "spans": []}


@dataclass
class Fake:
    """A service that another thread pretends, and its launcher. Attributes may be changed before it is launched."""

    label: str
    polls: int = 3
    """How often `/readyz` says 503 first."""
    models: tuple[str, ...] = ("caption", "ocr")
    answer: Any = field(default_factory=lambda: {"caption": "a dog"})
    status: int = 200
    startup: Any = field(default_factory=lambda: STARTUP)
    dies_after: int | None = None
    """Polls after which it counts as dead."""
    survives_unsealed: bool | None = None
    """Whether it lives on where it is not sealed; None: it cannot be unsealed."""
    live: int = 0
    """How many of it run."""
    launches: list[str] = field(default_factory=list)
    """Gets the label at each."""
    asked: list[str] = field(default_factory=list)

    def launch(self) -> FakeService:
        self.launches.append(self.label)
        return FakeService(self)

    def unseal(self) -> bool:
        if self.survives_unsealed is None:
            return False
        self.dies_after = None if self.survives_unsealed else self.dies_after
        self.survives_unsealed = None
        return True


class FakeService:
    def __init__(self, fake: Fake) -> None:
        self.fake, self.polls = fake, 0
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, document = service.respond(self.path)
                body = document if isinstance(document, bytes) else json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.do_GET()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        fake.live += 1

    def respond(self, path: str) -> tuple[int, Any]:
        if path == "/readyz":
            self.polls += 1
            ready = self.polls > self.fake.polls
            return 200 if ready else 503, {"ready": ready, "models": dict.fromkeys(self.fake.models)}
        self.fake.asked.append(path)
        if path == "/startup":
            return 200, self.fake.startup
        return self.fake.status, self.fake.answer

    def alive(self) -> bool:
        return self.fake.dies_after is None or self.polls < self.fake.dies_after

    def exit_code(self) -> int | None:
        return None if self.alive() else 3

    def addresses(self) -> list[str]:
        return [self.url]

    def memory(self) -> Memory | None:
        return Memory(peak=900_000_000, anonymous=300_000_000)

    def log(self) -> str:
        return "first line\n" + "x" * 3000 + "\nlast words"

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self.fake.live -= 1


QUESTIONS = {"caption": "/caption", "ocr": "/ocr"}


def questions(told: Told) -> list[Question]:
    """A picture, sent to the first model that there is."""
    path = next(path for name, path in QUESTIONS.items() if name in told.document["models"])
    return [HttpQuestion(Request(method="POST", path=path, body=b"picture"))]


QUESTION = Ask(ready=lambda: AtUrl("/readyz"), questions=questions)


@pytest.fixture
def pair() -> Iterator[tuple[Fake, Fake]]:
    one, other = Fake("naive"), Fake("baked")
    yield one, other
    assert (one.live, other.live) == (0, 0)


def test_a_start_is_measured_from_outside(pair: tuple[Fake, Fake]) -> None:
    sample = measure(pair[0], QUESTION)
    assert sample.first_answer is not None and 0 < sample.ready <= sample.first_answer
    assert (sample.peak_memory, sample.anonymous, sample.told) == (900_000_000, 300_000_000, "GET /readyz answered 200")
    assert [answer.body for answer in sample.answers] == [b'{"caption": "a dog"}']
    assert sample.startup == STARTUP


def test_nothing_needs_to_be_asked_and_no_timeline_needs_to_be_there(pair: tuple[Fake, Fake]) -> None:
    pair[0].startup = {}
    sample = measure(pair[0], Ask(ready=lambda: AtUrl("/readyz")))
    assert (sample.first_answer, sample.first_request, sample.steady_request, sample.answers) == (None, None, None, ())
    assert sample.startup is None


def test_a_sealed_container_that_ends_is_started_unsealed(pair: tuple[Fake, Fake]) -> None:
    pair[0].dies_after, pair[0].survives_unsealed = 2, True
    assert measure(pair[0], QUESTION).ready > 0
    assert pair[0].launches == ["naive", "naive"]


def test_what_ends_unsealed_too_is_told(pair: tuple[Fake, Fake]) -> None:
    pair[0].dies_after, pair[0].survives_unsealed = 2, False
    fails(pair[0], r"naive: ended with exit code 3 before it was ready; its log ends:\nx+\nlast words")
    assert pair[0].launches == ["naive", "naive"]


@pytest.mark.parametrize(("models", "path"), [(("ocr", "caption"), "/caption"), (("florence", "ocr"), "/ocr")])
def test_the_question_fits_the_models_and_is_asked_again_for_the_steady_time(
    pair: tuple[Fake, Fake], models: tuple[str, ...], path: str
) -> None:
    pair[0].models = models
    measure(pair[0], QUESTION)
    assert [asked for asked in pair[0].asked if asked != "/startup"] == [path] * (1 + STEADY)


def test_starts_are_interleaved_and_the_first_of_each_does_not_count(pair: tuple[Fake, Fake]) -> None:
    order: list[str] = []
    for fake in pair:
        fake.launches = order
    comparison = compare(*pair, QUESTION, rounds=2)
    assert order == ["naive", "baked"] * 3
    assert {label: len(samples) for label, samples in comparison.samples.items()} == {"naive": 2, "baked": 2}
    assert comparison.same_answers


def fails(fake: Fake, pattern: str, timeout: float = 30) -> None:
    with pytest.raises(PrebakeError) as caught:
        measure(fake, QUESTION, timeout=timeout)
    assert re.fullmatch(pattern, str(caught.value), re.DOTALL), str(caught.value)
    assert caught.value.exit_code == 1


def test_a_service_that_dies_before_it_is_ready_is_told_with_its_last_words(pair: tuple[Fake, Fake]) -> None:
    pair[0].dies_after = 2
    fails(pair[0], r"naive: ended with exit code 3 before it was ready; its log ends:\nx+\nlast words")


def test_a_service_that_is_never_ready_is_told_with_its_last_words(pair: tuple[Fake, Fake]) -> None:
    pair[0].polls = 10**9
    fails(
        pair[0],
        r"naive: not ready within 0\.3 s \(GET /readyz answered 503\); its log ends:\nx+\nlast words",
        timeout=0.3,
    )


def test_a_service_that_accepts_and_says_nothing_is_given_up_in_time(
    pair: tuple[Fake, Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    def respond(self: FakeService, path: str) -> tuple[int, Any]:
        time.sleep(2)
        return 503, {}

    monkeypatch.setattr(FakeService, "respond", respond)
    fails(pair[0], r"naive: not ready within 0\.3 s \(nothing answers at /readyz\); .*", timeout=0.3)


def test_a_ready_service_that_does_not_answer_is_told(pair: tuple[Fake, Fake]) -> None:
    pair[0].status, pair[0].answer = 503, {"error": "no"}
    fails(
        pair[0],
        r'naive: POST /caption: was answered with 503: "{\\"error\\": \\"no\\"}"; its log ends:\nx+\nlast words',
    )


def test_the_second_service_is_stopped_though_it_fails(pair: tuple[Fake, Fake]) -> None:
    pair[1].dies_after = 0
    pair[1].polls = 99
    with pytest.raises(PrebakeError, match=r"^baked: ended with exit code 3 before it was ready"):
        compare(*pair, QUESTION, rounds=3)
    assert (pair[0].launches, pair[1].launches) == (["naive"], ["baked"])


# --- what is made of the samples ---------------------------------------------------------------------------------


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
