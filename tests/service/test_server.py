"""A server that is told to stop answers what has arrived, says that it is stopping, and takes nothing new."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from helpers.baking import prebake
from helpers.pretended_service import started
from helpers.serving import Process, ask, picture, request

HELD, COMPUTED, SMALL = (picture(size=size) for size in ((77, 50), (78, 50), (20, 10)))


@contextmanager
def asked(folder: Path, *options: object, question: bytes = HELD) -> Iterator[tuple[Process, Future[Any]]]:
    """A service that works on a question until the file `release` is there."""
    with started(folder, *options) as process, ThreadPoolExecutor(1) as pool:
        process.until_ready()
        answer = pool.submit(request, process.url, "/ocr", question)
        deadline = time.monotonic() + 60
        while not (folder / "begun").exists():
            assert time.monotonic() < deadline, process.log
            time.sleep(0.01)
        yield process, answer


def draining(status: int, document: Any) -> bool:
    return status == 503 and document.get("draining") is True and document["ready"] is False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_is_under_way_is_answered_while_new_questions_are_refused(tmp_path: Path, number: int) -> None:
    with asked(tmp_path) as (process, answer):
        process.process.send_signal(number)
        process.until("/readyz", draining)
        assert ask(process.url, "/livez") == (200, {"live": True})
        assert "\nprebake_ready 0.0\n" in ask(process.url, "/metrics")[1]
        status, headers, body = request(process.url, "/ocr", SMALL)
        assert (status, headers["Connection"], headers["Retry-After"]) == (503, "close", "1")
        assert body == b'{"error": "the service is stopping"}\n'
        assert not answer.done()
        (tmp_path / "release").touch()
        status, headers, body = answer.result(60)
        assert (status, headers["Connection"], b"text" in body) == (200, "close", True)
        assert process.process.wait(60) == 0
        assert process.log.splitlines()[-2:] == [
            "stopping: waiting up to 60 s for active requests: 1", "stopped"
        ]  # fmt: skip


def test_an_answer_that_takes_longer_than_the_limit_is_cut(tmp_path: Path) -> None:
    with asked(tmp_path, "--drain", "0.2") as (process, answer):
        assert process.stop() == 1
        assert isinstance(answer.exception(60), OSError)
        assert process.log.splitlines()[-1] == (
            "stopped with unanswered requests: 1; they took more than 0.2 s (see --drain)"
        )


def test_an_answer_that_a_framework_computes_is_cut_without_a_crash(tmp_path: Path) -> None:
    """The interpreter's own end aborts with SIGABRT where a thread is inside of torch."""
    with asked(tmp_path, "--drain", "0.2", question=COMPUTED) as (process, answer):
        assert process.stop() == 1
        assert isinstance(answer.exception(60), OSError)
        assert "terminate called" not in process.log


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    with asked(tmp_path) as (process, answer):
        process.process.send_signal(signal.SIGTERM)
        process.until("/readyz", draining)
        assert process.stop(signal.SIGINT) == 1
        assert isinstance(answer.exception(60), OSError)
        assert process.log.splitlines()[-1] == "stopped with unanswered requests: 1; a second signal came"


def test_connections_without_a_request_do_not_keep_it(tmp_path: Path) -> None:
    import http.client

    with started(tmp_path) as process:
        process.until_ready()
        connections = [http.client.HTTPConnection(process.url.removeprefix("http://"), timeout=60) for _ in range(3)]
        for connection in connections:
            connection.request("GET", "/livez")
            assert connection.getresponse().read()
        assert process.stop() == 0
        for connection in connections:
            connection.close()


@pytest.mark.parametrize("value", ["-1", "soon", "nan", "inf"])
def test_the_limit_is_a_number_of_seconds(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = prebake(capsys, "serve", f"--drain={value}")
    assert code == 2
    assert f"argument --drain: invalid number of seconds value: '{value}'" in error


def test_memory_is_given_back_only_where_that_is_wished(
    tiny_models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A timer's thread after each pause costs more than it brings where the host has memory."""
    from contextlib import nullcontext

    from image_analyzer import server
    from prebake.startup import quickstart

    applications: list[Any] = []
    monkeypatch.setattr(server, "serve", lambda application, **options: applications.append((application, options)))
    monkeypatch.setattr(quickstart, "begin", lambda: None)
    prebake(capsys, "serve", "--root", tiny_models)
    prebake(capsys, "serve", "--root", tiny_models, "--give-memory-back", "--drain", "5")
    (plain, defaults), (wished, options) = applications
    assert plain.work is nullcontext
    assert wished.work is not nullcontext
    assert (defaults["drain"], options["drain"]) == (30, 5)
