"""The service answers from the first moment, tells how it starts, and no model or question takes it down."""

from __future__ import annotations

import json
import shutil
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from baking import flip_byte, prebake
from prebake import service, timeline
from prebake.budget import Start
from prebake.errors import ConfigError, LoadError, LoadTimeoutError
from prebake.models import State
from prebake.service import MAX_BODY, QUESTIONS, THREADS, Application
from serving import Pretended, Process, Reader, ask, picture, request

PICTURE = picture()
SMALL = picture(size=(200, 150))

# --- the application, asked directly -----------------------------------------------------------------------------


class Client:
    """Calls a WSGI application as a server would (PEP 3333)."""

    def __init__(self, application: Application) -> None:
        self.application = application
        self.status, self.headers = 0, dict[str, str]()

    def __call__(self, path: str, body: bytes | None = None, method: str | None = None) -> Any:
        path, _, query = path.partition("?")
        method = method if method is not None else "GET" if body is None else "POST"
        environ: dict[str, Any] = {
            "REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": query,
            "CONTENT_LENGTH": str(len(body or b"")), "wsgi.input": BytesIO(body or b""),
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
        ("/florence?task=<DANCE>", '"<DANCE>" is no task of Florence-2 (expected one of '),
        ("/florence?task=", '"" is no task of Florence-2 (expected one of '),
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
    assert ask("/ocr", bytes(MAX_BODY + 1)) == {"error": "an image may have 20,000,000 bytes"}
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
    assert ask("/ocr", PICTURE) == {"error": "/ocr failed; the service's log says why"}
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
    assert f"\nprebake_ready {ready:d}\n" in ask("/metrics").decode()


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
            assert ask("/ocr", PICTURE) == {"error": f"{QUESTIONS} questions are under way already"}
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
    watch = threading.Thread(target=service._watch, args=(Application(models),))
    watch.start()
    while "not ready: ocr failed" not in caplog.text:
        assert watch.is_alive()
    models.states["ocr"] = State.READY
    watch.join()
    assert timeline.READY in made.marks
    assert caplog.text.count("not ready") == 1


# --- the command -------------------------------------------------------------------------------------------------


def test_a_port_that_is_taken_is_said() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError) as caught:
            service.serve(Application(Pretended()), host="127.0.0.1", port=port, begin=lambda: None)
    assert str(caught.value) == f"cannot open 127.0.0.1:{port}: Address already in use"


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 99999), ("256.0.0.1", 8000), ("nowhere.invalid", 8000)])
def test_an_address_that_is_none_is_said(host: str, port: int) -> None:
    with pytest.raises(ConfigError, match=f"^cannot open {host}:{port}: "):
        service.serve(Application(Pretended()), host=host, port=port, begin=lambda: None)


def test_a_root_without_models_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prebake(capsys, "serve", "--root", tmp_path) == (
        2, "", f"prebake: error: {tmp_path}: holds no baked model (run: prebake bake --output {tmp_path})\n"
    )  # fmt: skip


# --- the process -------------------------------------------------------------------------------------------------


def test_each_question_is_answered(running: Process) -> None:
    status, caption = ask(running.url, "/caption", SMALL)
    assert (status, list(caption), bool(caption["caption"])) == (200, ["caption"], True)
    status, text = ask(running.url, "/ocr", SMALL)
    assert (status, [sorted(line) for line in text["text"]][:1]) == (200, [["box", "confidence", "text"]])
    status, found = ask(running.url, "/florence?task=%3COD%3E", SMALL)
    assert (status, found["task"], sorted(found["result"])) == (200, "<OD>", ["bboxes", "labels"])
    status, everything = ask(running.url, "/analyze", SMALL)
    assert status == 200
    assert everything == {"caption": caption["caption"], "text": text["text"], "objects": found["result"]}


TASKS = ["<CAPTION>", "<DETAILED_CAPTION>", "<MORE_DETAILED_CAPTION>", "<OD>", "<DENSE_REGION_CAPTION>",
         "<REGION_PROPOSAL>", "<OCR>", "<OCR_WITH_REGION>", "<CAPTION_TO_PHRASE_GROUNDING>&text=a+car",
         "<REFERRING_EXPRESSION_SEGMENTATION>&text=a+car", "<OPEN_VOCABULARY_DETECTION>&text=a+car",
         "<REGION_TO_SEGMENTATION>&text=<loc_1><loc_2><loc_30><loc_40>",
         "<REGION_TO_CATEGORY>&text=<loc_1><loc_2><loc_30><loc_40>",
         "<REGION_TO_DESCRIPTION>&text=<loc_1><loc_2><loc_30><loc_40>",
         "<REGION_TO_OCR>&text=<loc_1><loc_2><loc_30><loc_40>"]  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
def test_each_task_of_florence_is_answered(running: Process, task: str) -> None:
    status, found = ask(running.url, f"/florence?task={task.replace('<', '%3C').replace('>', '%3E')}", SMALL)
    assert status == 200, (found, running.log)
    assert found["task"] == task.partition("&")[0]


def test_many_threads_get_the_same_answers(running: Process) -> None:
    paths = ["/caption", "/ocr", "/florence?task=%3COD%3E"] * 6
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda path: (path, ask(running.url, path, SMALL)), paths))
    assert {status for _, (status, _) in answers} == {200}
    assert len({json.dumps(answer) for answer in answers}) == 3


def test_how_it_started_is_told(running: Process) -> None:
    status, startup = ask(running.url, "/startup")
    assert status == 200
    assert {"port open", "ready"} <= startup["marks"].keys()
    assert startup["marks"]["port open"] < startup["marks"]["ready"]
    assert {model["tier"] for model in startup["models"].values()} == {"mapped"}
    assert {span["model"] for span in startup["spans"]} >= {"caption", "ocr", "florence"}


@pytest.mark.parametrize(
    ("path", "body", "method", "expected"),
    [("/nowhere", None, "GET", 404), ("/caption", None, "GET", 405), ("/livez", b"", "POST", 405),
     ("/caption", b"garbage", "POST", 400), ("/florence?task=x", SMALL, "POST", 400),
     ("/caption", bytes(MAX_BODY + 1), "POST", 413)],
)  # fmt: skip
def test_errors_are_json_over_http_too(
    running: Process, path: str, body: bytes | None, method: str, expected: int
) -> None:
    status, document = ask(running.url, path, body, method)
    assert (status, list(document)) == (expected, ["error"])


def test_head_works_over_http(running: Process) -> None:
    status, headers, body = request(running.url, "/readyz", method="HEAD")
    assert (status, body, int(headers["Content-Length"]) > 0) == (200, b"", True)
    assert "too few bytes" not in running.log


def test_a_body_in_chunks_is_read(running: Process) -> None:
    import http.client

    connection = http.client.HTTPConnection(running.url.removeprefix("http://"), timeout=60)
    connection.request("POST", "/ocr", iter([SMALL[:1000], SMALL[1000:]]), encode_chunked=True,
                       headers={"Transfer-Encoding": "chunked"})  # fmt: skip
    assert connection.getresponse().status == 200
    connection.close()


def test_the_server_does_not_say_what_it_is(running: Process) -> None:
    assert "Server" not in request(running.url, "/livez")[1]


# Two models and no OCR: its imports are most of a start.
@pytest.fixture(scope="module")
def two_models(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("two") / "models"
    for name in ("caption", "florence"):
        shutil.copytree(tiny_models / name, root / name)
    yield root


def test_it_is_live_before_it_is_ready_and_ends_well_while_it_loads(two_models: Path) -> None:
    with Process("serve", "--root", two_models) as process:
        document = process.until("/readyz", lambda status, _: status == 503)
        assert (document["ready"], ask(process.url, "/livez")) == (False, (200, {"live": True}))
        assert {model["state"] for model in document["models"].values()} <= {"loading", "idle", "ready"}
        assert process.stop() == 0
        assert process.log.splitlines()[-1] == "stopped"


def test_it_ends_well_when_it_is_ready(two_models: Path) -> None:
    with Process("serve", "--root", two_models) as process:
        # the mark is made by a thread of its own, some milliseconds after the first 200
        process.until("/startup", lambda _, document: "ready" in document["marks"])
        assert process.stop() == 0
        assert "Traceback" not in process.log


def test_a_question_that_comes_early_waits_for_its_model(two_models: Path) -> None:
    with Process("serve", "--root", two_models) as process:
        process.until("/livez", lambda status, _: status == 200)
        assert ask(process.url, "/caption", SMALL)[0] == 200


def test_a_lazy_service_loads_a_model_when_it_is_asked_for(two_models: Path) -> None:
    with Process("serve", "--root", two_models, "--lazy") as process:
        document = process.until_ready()
        assert {name: model["state"] for name, model in document["models"].items()} == {
            "caption": "idle", "florence": "idle"
        }  # fmt: skip
        assert ask(process.url, "/caption", SMALL)[0] == 200
        document = ask(process.url, "/readyz")[1]
        assert {name: model["state"] for name, model in document["models"].items()} == {
            "caption": "ready", "florence": "idle"
        }  # fmt: skip
        assert process.stop() == 0


def test_a_model_that_fails_is_named_and_the_others_answer(two_models: Path, tmp_path: Path) -> None:
    root = shutil.copytree(two_models, tmp_path / "models")
    weights = root / "florence" / "model.safetensors"
    flip_byte(weights, 0)  # the length of the header
    with Process("serve", "--root", root) as process:
        document = process.until("/readyz", lambda _, found: found["models"]["florence"]["state"] == "failed")
        assert document["ready"] is False
        assert str(weights) in document["models"]["florence"]["error"]
        status, answer = ask(process.url, "/florence", SMALL)
        assert (status, str(weights) in answer["error"]) == (503, True)
        assert ask(process.url, "/caption", SMALL)[0] == 200
        assert ask(process.url, "/livez")[0] == 200
        assert 'prebake_model_state{model="florence",state="failed"} 1' in ask(process.url, "/metrics")[1]
        assert "not ready: florence failed" in process.log
        assert process.stop() == 0
