"""`prebake serve` as a process: it answers from the first moment, tells how it starts, and ends well."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from helpers.baking import flip_byte, prebake
from helpers.serving import Pretended, Process, ask, picture, request
from image_analyzer import server
from image_analyzer.service import MAX_BODY, Application
from prebake.errors import ConfigError

SMALL = picture(size=(200, 150))


# --- the command -------------------------------------------------------------------------------------------------


def test_a_port_that_is_taken_is_said() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError) as caught:
            server.serve(Application(Pretended()), host="127.0.0.1", port=port, begin=lambda: None)
    assert str(caught.value) == f"cannot open 127.0.0.1:{port}: Address already in use"


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 99999), ("256.0.0.1", 8000), ("nowhere.invalid", 8000)])
def test_an_address_that_is_none_is_said(host: str, port: int) -> None:
    with pytest.raises(ConfigError, match=f"^cannot open {host}:{port}: "):
        server.serve(Application(Pretended()), host=host, port=port, begin=lambda: None)


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
    if "snapshot" in startup:  # loaded before the dump
        steps = [span["name"] for span in startup["spans"] if span["name"].startswith("restore: ")]
        assert steps[:5] == [f"restore: {step}" for step in ("check", "map", "vDSO, heap", "go on", "renew")]
        assert 0 < startup["snapshot"]["seconds"] < startup["marks"]["ready"]
    else:
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
