"""The probe: a script of its own, run as the image runs it."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from helpers.hub_server import Answer, Server
from prebake.telemetry import probe

SCRIPT = Path(probe.__file__)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-SEB", str(SCRIPT), *arguments], capture_output=True, text=True, timeout=30)


def service(ready: int) -> Server:
    """Answers `/livez` with 200 and `/readyz` with `ready`."""
    answers = {"/livez": 200, "/readyz": ready}
    return Server(lambda request: Answer(status=answers.get(request.path, 404), body=b"{}"))


@contextmanager
def raw_server(reply: bytes, *, wait: float = 0) -> Iterator[int]:
    """The port of a server that sends `reply` to whoever connects, `wait` seconds late."""
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection, suppress(OSError):
                connection.recv(4096)  # unread data would make closing a reset
                done.wait(wait)
                connection.sendall(reply)

        thread = threading.Thread(target=serve)
        thread.start()
        yield int(listening.getsockname()[1])
        done.set()
        thread.join()


def test_a_ready_service_is_exit_0_and_no_word() -> None:
    with service(ready=200) as server:
        done = run("ready", "--url", server.url)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_service_that_is_still_loading_is_live() -> None:
    with service(ready=503) as server:
        assert run("live", "--url", server.url).returncode == 0


def test_a_service_that_is_still_loading_is_not_ready_and_the_answer_is_named() -> None:
    with service(ready=503) as server:
        done = run("ready", f"--url={server.url}")
    assert done.returncode == 1
    assert done.stderr == f"probe: not ready: 127.0.0.1:{server.port}/readyz answered 503\n"


def test_it_asks_once_and_sends_nothing_else() -> None:
    with service(ready=200) as server:
        run("ready", "--url", server.url)
    assert [(request.method, request.path) for request in server.requests] == [("GET", "/readyz")]


def test_a_closed_port_is_exit_1_with_the_reason() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    done = run("live", "--url", f"http://127.0.0.1:{port}")
    assert (done.returncode, done.stderr) == (1, f"probe: 127.0.0.1:{port} does not answer: Connection refused\n")


def test_a_service_that_hangs_is_given_up_in_time() -> None:
    with raw_server(b"HTTP/1.1 200 OK\r\n\r\n", wait=20) as port:
        done = run("live", "--url", f"http://127.0.0.1:{port}", "--timeout", "0.2")
    assert (done.returncode, done.stderr) == (1, f"probe: 127.0.0.1:{port} does not answer: timed out\n")


@pytest.mark.parametrize("reply", [b"", b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1\r\n", b"200 OK\r\n", b"x" * 5000])
def test_what_is_no_http_is_exit_1(reply: bytes) -> None:
    with raw_server(reply) as port:
        done = run("live", "--url", f"http://127.0.0.1:{port}")
    assert (done.returncode, done.stderr) == (1, f"probe: not live: 127.0.0.1:{port}/livez answered no HTTP\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected one of live, ready, open, found nothing"),
        (["raedy"], "expected one of live, ready, open, found raedy"),
        (["live", "ready"], "expected one of live, ready, open, found live ready"),
        (["live", "--port", "1"], "unknown option --port"),
        (["live", "--url", "https://127.0.0.1"], "--url: https://127.0.0.1 is not of the form http://127.0.0.1:8000"),
        (["live", "--url", "http://"], "--url: http:// is not of the form http://127.0.0.1:8000"),
        (["live", "--url", "http://a:0"], "--url: http://a:0 is not of the form http://127.0.0.1:8000"),
        (["live", "--url", "http://a:1/x y"], "--url: http://a:1/x y is not of the form http://127.0.0.1:8000"),
        (["live", "--url"], "--url:  is not of the form http://127.0.0.1:8000"),
        (["live", "--timeout", "soon"], "--timeout: soon is not a number of seconds above 0"),
        (["live", "--timeout", "0"], "--timeout: 0 is not a number of seconds above 0"),
        (["live", "--timeout", "nan"], "--timeout: nan is not a number of seconds above 0"),
    ],
)  # fmt: skip
def test_wrong_use_is_exit_2_and_says_what_was_expected(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert probe.main(arguments) == 2
    usage = "usage: probe.py {live,ready,open} [--url URL] [--timeout SECONDS]"
    assert capsys.readouterr().err == f"probe: {message}\n{usage}\n"


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert probe.main(["--help"]) == 0
    assert (
        "example:\n  python -SEB /opt/prebake/probe.py ready --url http://127.0.0.1:8000\n" in capsys.readouterr().out
    )


def test_a_name_with_several_addresses_is_tried_at_each() -> None:
    with service(ready=200) as server:  # which listens on 127.0.0.1, and localhost may be ::1 first
        assert run("ready", "--url", f"http://localhost:{server.port}").returncode == 0


def imported(*command: str) -> set[str]:
    """Modules that a bare interpreter imports for a command."""
    done = subprocess.run([sys.executable, "-SEB", "-X", "importtime", *command], capture_output=True, text=True)
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}


def test_nothing_heavy_is_imported() -> None:
    bare = imported("-c", "pass")
    assert imported(str(SCRIPT), "live", "--url", "http://127.0.0.1:1") - bare <= {"__future__", "_socket", "time"}


def test_the_service_answers_the_paths_that_are_asked() -> None:
    from image_analyzer.service import Application

    class NoModels(dict):  # type: ignore[type-arg]
        ready = True

        def status(self) -> tuple[()]:
            return ()

    statuses: list[str] = []
    for path in probe.PATHS.values():
        environ = {"REQUEST_METHOD": "GET", "PATH_INFO": path}
        list(Application(NoModels())(environ, lambda status, headers: statuses.append(status)))
    assert statuses == ["200 OK", "200 OK"]


@pytest.mark.parametrize(("status", "code"), [(200, 0), (204, 0), (302, 0), (404, 1), (503, 1)])
def test_a_path_of_the_service_is_asked_instead(status: int, code: int) -> None:
    with Server(lambda request: Answer(status=status, body=b"")) as server:
        done = run("ready", "--url", f"{server.url}/health")
    assert done.returncode == code
    assert [request.path for request in server.requests] == ["/health"]


def test_open_needs_a_connection_alone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        assert run("open", "--url", f"http://127.0.0.1:{port}").returncode == 0
    done = run("open", "--url", f"http://127.0.0.1:{port}")
    assert (done.returncode, done.stderr) == (1, f"probe: 127.0.0.1:{port} does not answer: Connection refused\n")
