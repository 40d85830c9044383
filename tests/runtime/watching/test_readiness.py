"""What tells that a service is ready: asked of a server in this process, and of a service that is only pretended."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

import pytest

from prebake.errors import ConfigError
from prebake.watching.readiness import (
    PATHS,
    AtAnyPath,
    AtExit,
    AtLine,
    AtPort,
    AtUrl,
    Ready,
    Told,
    parse_ready,
    unready,
    wait,
)


@dataclass
class Pretended:
    """A service that is what a test says."""

    at: list[str] = field(default_factory=list)
    code: int | None = None
    output: str = ""

    def alive(self) -> bool:
        return self.code is None

    def exit_code(self) -> int | None:
        return self.code

    def addresses(self) -> list[str]:
        return self.at

    def log(self) -> str:
        return self.output


class Answers(ThreadingHTTPServer):
    """Answers each path with the next of its status codes, and 404 elsewhere."""

    daemon_threads = True

    def __init__(self, **codes: list[int]) -> None:
        self.codes = {f"/{name}": list(values) for name, values in codes.items()}
        self.asked: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append(self.path)
                left = server.codes.get(self.path, [404])
                self.send_response(left.pop(0) if len(left) > 1 else left[0])
                self.end_headers()
                self.wfile.write(b'{"models": {}}')

            def log_message(self, *_: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def server() -> Iterator[Answers]:
    with Answers() as made:
        thread = Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def told(ready: Ready, service: Pretended) -> Told | None:
    return wait(service, ready, 30).told


def port_of(url: str) -> str:
    return url.rpartition(":")[2]


@pytest.mark.parametrize("whole", [True, False], ids=["url", "path"])
def test_a_url_or_a_path_on_the_port_answers(server: Answers, whole: bool) -> None:
    server.codes["/up"] = [503, 404, 204]
    ready = AtUrl(server.url + "/up" if whole else "/up")
    found = told(ready, Pretended([] if whole else [server.url]))
    assert found == Told(how="GET /up answered 204", url=server.url, document=found and found.document)
    assert server.asked == ["/up"] * 3


def test_the_answer_is_kept_where_it_is_json(server: Answers) -> None:
    server.codes["/up"] = [200]
    assert told(AtUrl("/up"), Pretended([server.url])) == Told(
        how="GET /up answered 200", url=server.url, document={"models": {}}
    )


@pytest.mark.parametrize(
    ("codes", "how", "asked"),
    [
        ({"readyz": [503, 503, 200], "health": [200]}, "GET /readyz answered 200", ["/readyz"] * 3),
        ({"health": [200]}, "GET /health answered 200", ["/readyz", "/health"]),
        ({"health": [405], "healthz": [401]}, "GET /healthz answered 401", ["/readyz", "/health", "/healthz"]),
        ({"": [302]}, "GET / answered 302", list(PATHS)),
    ],
    ids=["the first that exists decides", "health", "refuses strangers", "root"],
)
def test_the_usual_paths_are_asked_in_turn(
    server: Answers, codes: dict[str, list[int]], how: str, asked: list[str]
) -> None:
    server.codes = {f"/{name}": values for name, values in codes.items()}
    found = told(AtAnyPath(), Pretended([server.url]))
    assert found is not None
    assert (found.how, found.url, server.asked) == (how, server.url, asked)


def test_http_with_none_of_the_paths_is_ready_too(server: Answers) -> None:
    found = told(AtAnyPath(), Pretended([server.url]))
    assert found == Told(
        how=f"port {port_of(server.url)} answers HTTP; it has none of /readyz, /health, /healthz, /ready, /",
        url=server.url,
    )


def test_a_port_that_does_not_speak_http_is_ready_when_it_accepts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def answer() -> None:
            accepted, _ = listener.accept()
            with accepted:
                accepted.recv(1000)
                accepted.sendall(b"220 mail.example\r\n")

        thread = Thread(target=answer)
        thread.start()
        found = told(AtAnyPath(), Pretended([f"http://127.0.0.1:{port}"]))
        thread.join()
    assert found == Told(
        how=f"port {port} accepts connections, and does not speak HTTP", url=f"http://127.0.0.1:{port}"
    )


def test_http_is_preferred_to_another_port(server: Answers) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        other = f"http://127.0.0.1:{silent.getsockname()[1]}"
        ready = AtAnyPath()
        ready._patience = 0.05
        found = told(ready, Pretended([other, server.url]))
    assert found is not None and found.url == server.url


@pytest.mark.parametrize("named", [True, False])
def test_an_open_port_is_enough_where_that_is_asked(named: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        found = told(AtPort(port if named else None), Pretended([f"http://127.0.0.1:{port}"]))
    assert found == Told(how=f"port {port} accepts connections", url=f"http://127.0.0.1:{port}")


def test_a_line_of_the_output_tells_also_when_it_was_the_last() -> None:
    service = Pretended(output="loading\nready for work\n", code=0)
    assert told(AtLine("ready for"), service) == Told(how='its output contains "ready for"')


@pytest.mark.parametrize(("code", "expected"), [(0, Told(how="it ended with exit code 0")), (3, None)])
def test_a_job_is_done_when_it_ended_well(code: int, expected: Told | None) -> None:
    assert told(AtExit(), Pretended(code=code)) == expected


LATE = "was not ready within 0.05 s ({}): name what tells it with --ready, or wait longer with --timeout"


@pytest.mark.parametrize(
    ("ready", "service", "expected"),
    [
        (AtAnyPath(), Pretended(code=3), "ended with exit code 3 before it was ready"),
        (AtAnyPath(), Pretended(code=-9), "ended with signal 9 (SIGKILL, perhaps out of memory) before it was ready"),
        (
            AtAnyPath(),
            Pretended(code=0),
            "ended with exit code 0 before it was ready: a job is done when it ends: --until-exit",
        ),
        (AtAnyPath(), Pretended(), LATE.format("it listens on no port")),
        (AtAnyPath(), Pretended(["http://127.0.0.1:1"]), LATE.format("port 1 does not answer")),
        (AtUrl("/up"), Pretended(), LATE.format("nothing answers at /up")),
        (AtPort(1), Pretended(), LATE.format("port 1 accepts no connection")),
        (AtLine("up"), Pretended(), LATE.format('no line of its output contains "up"')),
        (AtExit(), Pretended(), LATE.format("it is still running")),
    ],
)
def test_why_it_is_not_ready_is_told(ready: Ready, service: Pretended, expected: str) -> None:
    waited = wait(service, ready, 0.05)
    assert (waited.told, unready(service, waited, 0.05)) == (None, expected)


def test_a_server_that_queues_requests_while_it_loads_is_waited_for() -> None:
    """As gunicorn's master does: the port is open, and the answer comes from a worker that is not there yet."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ready = AtAnyPath()
        ready._patience = 0.02

        listener.settimeout(0.05)
        done = Event()

        def late() -> None:
            time.sleep(0.2)
            while not done.is_set():
                with suppress(OSError):  # nobody asks, or a request was given up meanwhile
                    accepted, _ = listener.accept()
                    with accepted:
                        accepted.recv(1000)
                        accepted.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

        thread = Thread(target=late)
        thread.start()
        found = told(ready, Pretended([f"http://127.0.0.1:{listener.getsockname()[1]}"]))
        done.set()
        thread.join()
    assert found is not None and found.how == "GET /readyz answered 200"


def test_a_url_that_is_answered_before_the_start_is_refused(server: Answers) -> None:
    server.codes["/up"] = [503]
    with pytest.raises(ConfigError) as caught:
        AtUrl(f"{server.url}/up").refuse_others()
    assert str(caught.value) == (
        f"{server.url}/up is answered already (503): something else listens there; end it, or give the service another "
        "port"
    )
    AtUrl("/up").refuse_others()


@pytest.mark.parametrize("text", ["/up", "http://localhost:1/up", "https://host/up", "tcp", "tcp:80"])
def test_what_tells_readiness_is_read(text: str) -> None:
    assert isinstance(parse_ready(text, "--ready"), AtPort if text.startswith("tcp") else AtUrl)


@pytest.mark.parametrize("text", ["health", "tcp:0", "tcp:70000", "tcp:x", "ftp://host/x", "http:///x", ""])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_ready(text, "--ready")
    assert str(caught.value) == f'--ready: "{text}" is not a URL, a path such as "/health", "tcp" or "tcp:PORT"'
