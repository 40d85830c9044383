"""The service answers every question, or says why not, and no model or question takes it down."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any

import pytest

from helpers.serving import Pretended, Reader, picture
from image_analyzer import server
from image_analyzer.service import MAX_BODY, QUESTIONS, THREADS, Application
from prebake.errors import ConfigError, LoadError, LoadTimeoutError
from prebake.telemetry import timeline
from prebake.telemetry.budget import Start
from prebake.telemetry.status import State

PICTURE = picture()


class Client:
    """Calls a WSGI application as a server would (PEP 3333)."""

    def __init__(self, application: Application) -> None:
        self.application = application
        self.status, self.headers = 0, dict[str, str]()

    def __call__(self, path: str, body: bytes | None = None, method: str | None = None, *, accept: str = "*/*") -> Any:
        path, _, query = path.partition("?")
        method = method if method is not None else "GET" if body is None else "POST"
        environ: dict[str, Any] = {
            "REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": query,
            "HTTP_ACCEPT": accept, "CONTENT_LENGTH": str(len(body or b"")), "wsgi.input": BytesIO(body or b""),
        }  # fmt: skip

        def start_response(status: str, headers: list[tuple[str, str]]) -> None:
            self.status, self.headers = int(status.split()[0]), dict(headers)

        content = b"".join(self.application(environ, start_response))
        is_json = self.headers["Content-Type"] == "application/json" and content
        return json.loads(content) if is_json else content


def client(models: Pretended, *, lazy: bool = False) -> Client:
    return Client(Application(models, lazy=lazy))


def failing(name: str, error: Exception) -> Client:
    models = Pretended(**{name: error})
    models.states[name] = State.FAILED
    return client(models)


def test_the_answer_is_what_the_model_says() -> None:
    ask = client(Pretended(ocr=Reader()))
    assert ask("/ocr", PICTURE) == {
        "text": [{"text": "글", "box": [[0, 0], [640, 0], [9, 9], [0, 9]], "confidence": 0.5}]
    }
    assert (ask.status, ask.headers["Content-Type"]) == (200, "application/json")


def test_the_start_is_told_as_a_ratio_to_the_recorded_baseline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline, "process", timeline.Timeline())
    baseline = Start(ready=8.0, first_answer=9.5, peak_memory=10**9)
    ask = Client(Application(Pretended(ocr=Reader()), baseline=baseline))
    told = {"ready": 8.0, "first_answer": 9.5, "peak_memory": 10**9}
    assert ask("/startup")["baseline"] == told | {"ratio": None}
    timeline.process.marks["ready"] = 2.0
    assert ask("/startup")["baseline"] == told | {"ratio": 0.25}
    assert "baseline" not in Client(Application(Pretended(ocr=Reader())))("/startup")


def test_browsers_get_how_it_started_as_a_page_and_tools_as_json() -> None:
    ask = client(Pretended(ocr=Reader()))
    for accept, kind in (
        ("text/html,application/xhtml+xml,*/*;q=0.8", "text/html; charset=utf-8"),
        ("*/*", "application/json"),
        ("application/json", "application/json"),
    ):
        ask("/startup", accept=accept)
        assert (ask.headers["Content-Type"], ask.headers["Vary"]) == (kind, "Accept")
    ask("/readyz", accept="text/html")
    assert ask.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("path", ["/", "/livez", "/readyz", "/startup", "/metrics"])
def test_head_gives_the_headers_of_get_without_the_body(path: str) -> None:
    ask = client(Pretended(ocr=Reader()))
    body = ask(path)
    status, kind = ask.status, ask.headers["Content-Type"]
    assert (ask(path, method="HEAD"), ask.status, ask.headers["Content-Type"]) == (b"", status, kind)
    assert int(ask.headers["Content-Length"]) > 0
    assert body


def test_an_unknown_path_is_answered_with_those_that_there_are() -> None:
    ask = client(Pretended())
    assert ask("/captoin", PICTURE) == {
        "error": "there is no /captoin (there are: /, /livez, /readyz, /startup, /metrics, /caption, /ocr, /florence, "
                 "/analyze)"
    }  # fmt: skip
    assert ask.status == 404


@pytest.mark.parametrize(
    ("path", "method", "allowed"),
    [("/caption", "GET", "POST"), ("/caption", "HEAD", "POST"), ("/caption", "POS", "POST"), ("/caption", "", "POST"),
     ("/livez", "POST", "GET, HEAD"), ("/livez", "E", "GET, HEAD"), ("/livez", ", ", "GET, HEAD"),
     ("/livez", "DELETE", "GET, HEAD")],
)  # fmt: skip
def test_another_method_is_refused_with_those_that_are_allowed(path: str, method: str, allowed: str) -> None:
    found = client(Pretended())
    document = found(path, method=method)
    assert (found.status, found.headers["Allow"]) == (405, allowed)
    assert document == (b"" if method == "HEAD" else {"error": f"{path} takes {allowed}"})


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/caption?language=ko", "/caption takes no parameters, not language"),
        ("/florence?tusk=x&task=<OD>", "/florence takes task and text, not tusk"),
        ("/florence?task=<DANCE>", '"<DANCE>" is not a task of Florence-2 (expected one of '),
        ("/florence?task=", '"" is not a task of Florence-2 (expected one of '),
        ("/florence?task=<OD>&text=a", "<OD> takes no text"),
        ("/florence?task=%3CREGION_TO_OCR%3E", "<REGION_TO_OCR> needs a text"),
    ],
)
def test_a_wrong_parameter_is_refused(path: str, message: str) -> None:
    ask = client(Pretended(caption=None, florence=None))
    assert ask(path, PICTURE)["error"].startswith(message)
    assert ask.status == 400


@pytest.mark.parametrize("body", [b"", b"garbage", PICTURE[:200]], ids=["empty", "garbage", "truncated"])
def test_a_body_that_is_no_image_is_refused(body: bytes) -> None:
    ask = client(Pretended(ocr=Reader()))
    assert "image" in ask("/ocr", body, "POST")["error"]
    assert ask.status == 400


def test_a_body_that_is_too_large_is_refused_without_reading_it() -> None:
    ask = client(Pretended(ocr=Reader()))
    assert ask("/ocr", bytes(MAX_BODY + 1)) == {"error": "an image may have at most 20,000,000 bytes"}
    assert ask.status == 413


def test_a_model_that_is_not_there_is_not_found() -> None:
    ask = client(Pretended(ocr=Reader()))
    assert ask("/caption", PICTURE) == {"error": '/models: no model "caption"'}
    assert ask.status == 404


@pytest.mark.parametrize(
    "error",
    [LoadError("ocr: no tier could load it"), LoadTimeoutError("ocr: not loaded within 3 s"),
     ConfigError("transformers 4.1 has no Such")],
)  # fmt: skip
def test_a_model_that_cannot_be_loaded_is_unavailable(error: Exception) -> None:
    ask = failing("ocr", error)
    assert ask("/ocr", PICTURE) == {"error": str(error)}
    assert (ask.status, ask.headers["Retry-After"]) == (503, "5")


def test_a_model_that_breaks_is_logged_and_told_without_details(caplog: pytest.LogCaptureFixture) -> None:
    ask = failing("ocr", RuntimeError("secret shapes"))
    assert ask("/ocr", PICTURE) == {"error": "/ocr failed; see the service's log"}
    assert ask.status == 500
    assert "secret shapes" in caplog.text


def test_readiness_names_every_model_and_its_state() -> None:
    models = Pretended(ocr=Reader(), caption=None)
    models.states["caption"] = State.LOADING
    ask = client(models)
    document = ask("/readyz")
    assert (ask.status, document["ready"]) == (503, False)
    assert {name: model["state"] for name, model in document["models"].items()} == {
        "ocr": "ready", "caption": "loading"
    }  # fmt: skip
    models.states["caption"] = State.READY
    assert ask("/readyz")["ready"] is True
    assert ask.status == 200


def test_readiness_does_not_wait_for_a_model_that_is_not_required() -> None:
    models = Pretended(ocr=Reader(), caption=None)
    models.optional, models.states["caption"] = {"caption"}, State.FAILED
    ask = client(models)
    assert ask("/readyz")["ready"] is True


@pytest.mark.parametrize(("state", "ready"), [(State.IDLE, True), (State.LOADING, True), (State.FAILED, False)])
def test_a_lazy_service_is_ready_for_questions_that_load_models(state: State, ready: bool) -> None:
    models = Pretended(ocr=Reader())
    models.states["ocr"] = state
    ask = client(models, lazy=True)
    assert ask("/readyz")["ready"] is ready
    assert f"\nprebake_ready {ready:d}.0\n" in ask("/metrics").decode()


def test_probes_are_answered_while_as_many_questions_as_may_wait_for_a_model() -> None:
    """A liveness probe that fails while models load would have the container killed for starting."""
    assert THREADS > QUESTIONS
    arrived, loaded = threading.Semaphore(0), threading.Event()

    def loading() -> Reader:
        arrived.release()
        loaded.wait()
        return Reader()

    application = Application(Pretended(ocr=loading))
    with ThreadPoolExecutor(QUESTIONS) as pool:
        try:
            waiting = [pool.submit(Client(application), "/ocr", PICTURE) for _ in range(QUESTIONS)]
            for _ in waiting:
                arrived.acquire()
            ask = Client(application)
            assert ask("/livez") == {"live": True}
            assert ask("/ocr", PICTURE) == {"error": f"{QUESTIONS} requests are already active"}
            assert (ask.status, ask.headers["Retry-After"]) == (503, "1")
        finally:
            loaded.set()
        assert all(answer.result()["text"] for answer in waiting)
    assert ask("/ocr", PICTURE)["text"]


def test_requests_are_counted_by_path_and_status() -> None:
    ask = client(Pretended(ocr=Reader()))
    for body in (PICTURE, PICTURE, b"garbage"):
        ask("/ocr", body)
    assert dict(ask.application.counts.requests) == {("/ocr", 200): 2, ("/ocr", 400): 1}


def test_a_service_becomes_ready_after_all_where_a_failed_model_is_loaded_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(timeline, "process", made := timeline.Timeline())
    monkeypatch.setattr(timeline, "mark", made.mark)
    models = Pretended(ocr=Reader())
    models.states["ocr"] = State.FAILED
    watch = threading.Thread(target=server._watch, args=(Application(models),))
    watch.start()
    while "not ready: ocr failed" not in caplog.text:
        assert watch.is_alive()
    models.states["ocr"] = State.READY
    watch.join()
    assert timeline.READY in made.marks
    assert caplog.text.count("not ready") == 1
