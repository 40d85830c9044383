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
from prebake.watching.questions import HttpQuestion, Question
from prebake.watching.readiness import AtUrl, Told
from prebake_build.measure.compare import STEADY, Ask, compare, measure

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
        if self.survives_unsealed:
            self.dies_after, self.polls = None, 3
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


def test_a_sealed_container_that_is_never_ready_is_started_unsealed(pair: tuple[Fake, Fake]) -> None:
    pair[0].polls, pair[0].survives_unsealed = 10**9, True
    assert measure(pair[0], QUESTION, timeout=1).ready > 0
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
        r"naive: was not ready within 0\.3 s \(GET /readyz answered 503\): name what tells it with --ready, or wait "
        r"longer with --timeout; its log ends:\nx+\nlast words",
        timeout=0.3,
    )


def test_a_service_that_accepts_and_says_nothing_is_given_up_in_time(
    pair: tuple[Fake, Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    def respond(self: FakeService, path: str) -> tuple[int, Any]:
        time.sleep(2)
        return 503, {}

    monkeypatch.setattr(FakeService, "respond", respond)
    fails(pair[0], r"naive: was not ready within 0\.3 s \(nothing answers at /readyz\): .*", timeout=0.3)


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
