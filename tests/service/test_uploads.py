"""Bodies that are received at once take a bounded amount of memory, and none keeps others from being answered."""

from __future__ import annotations

import http.client
import io
import json
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image
from waitress.adjustments import Adjustments

from helpers.pretended_service import started
from helpers.serving import Process, ask, picture, request
from image_analyzer.capacity import Capacity
from image_analyzer.service import MAX_BODY
from image_analyzer.uploads import BODIES, SMALL, Parser

SMALL_PICTURE = picture(size=(200, 150))


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Process]:
    with started(tmp_path) as process:
        process.until_ready()
        assert ask(process.url, "/ocr", SMALL_PICTURE)[0] == 200  # Pillow and NumPy are imported
        yield process


def memory(process: Process, kind: str = "RssAnon") -> int:
    """Bytes of memory that are the process's own; `VmHWM`: the most that was resident so far."""
    found = re.search(rf"{kind}:\s+(\d+) kB", Path(f"/proc/{process.process.pid}/status").read_text())
    assert found
    return 1024 * int(found[1])


def connect(process: Process) -> socket.socket:
    address = urlsplit(process.url)
    assert address.hostname
    assert address.port
    return socket.create_connection((address.hostname, address.port), timeout=60)


def begin_upload(process: Process, length: int, *, sent: int, header: str = "") -> socket.socket:
    """A connection with an upload of `length` bytes, of which `sent` are sent."""
    connection = connect(process)
    connection.sendall(f"POST /ocr HTTP/1.1\r\nHost: x\r\n{header}Content-Length: {length}\r\n\r\n".encode())
    for _ in range(sent // 100_000):
        connection.sendall(bytes(100_000))
    return connection


def answer(connection: socket.socket) -> tuple[int, dict[str, str], Any]:
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response.status, {name.lower(): value for name, value in response.getheaders()}, json.loads(response.read())


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize(("length", "allowed"), [(39_000_000, 60_000_000), (MAX_BODY, 1.6 * BODIES)])
def test_unfinished_uploads_take_bounded_memory_and_others_are_answered(
    service: Process, length: int, allowed: float
) -> None:
    before = memory(service)
    with ExitStack() as closing:
        connections = [closing.enter_context(begin_upload(service, length, sent=length - 1_000_000)) for _ in range(20)]
        assert memory(service) - before < allowed
        assert ask(service.url, "/livez") == (200, {"live": True})
        assert ask(service.url, "/ocr", SMALL_PICTURE)[0] == 200
        expected = {413} if length > MAX_BODY else {400, 503}
        for connection in connections:
            connection.sendall(bytes(1_000_000))
        answers = [answer(connection) for connection in connections]
    assert {status for status, _, _ in answers} == expected
    for status, headers, document in answers:
        if status == 503:
            assert (headers["retry-after"], document) == (
                "1", {"error": "the service is receiving too many images"}
            )  # fmt: skip
    counted = ask(service.url, "/metrics")[1]
    assert sum(map(float, re.findall(r'requests_total{path="/ocr",status="(?:400|413|503)"} (\S+)', counted))) == 20


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_small_files_of_large_pictures_take_bounded_memory(service: Process) -> None:
    file = io.BytesIO()
    Image.new("RGBA", (5000, 5000)).save(file, "PNG")
    assert len(file.getvalue()) < 100_000
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: ask(service.url, "/ocr", file.getvalue())[0], range(8)))
    assert answers == [200] * 8
    assert memory(service, "VmHWM") < 1_000_000_000


def test_uploads_that_are_given_up_leave_their_memory_to_others(service: Process) -> None:
    for _ in range(3):
        with ExitStack() as closing:
            for _ in range(6):
                closing.enter_context(begin_upload(service, MAX_BODY, sent=100_000))
            assert ask(service.url, "/livez")[0] == 200
    deadline = time.monotonic() + 60
    while ask(service.url, "/ocr", bytes(MAX_BODY))[0] == 503:  # the server has yet to see that they are closed
        assert time.monotonic() < deadline


def test_answered_uploads_leave_their_memory_to_others(service: Process) -> None:
    connection = http.client.HTTPConnection(urlsplit(service.url).netloc, timeout=60)
    for _ in range(7):
        connection.request("POST", "/ocr", bytes(MAX_BODY))
        response = connection.getresponse()
        assert (response.status, bool(response.read())) == (400, True)
    connection.close()


@pytest.mark.parametrize(
    "begun", ["POST /ocr HTTP/1.1\r\nHost:", "POST /ocr HTTP/1.1\r\nContent-Length: 100\r\n\r\nabc"]
)
def test_a_request_that_does_not_arrive_is_given_up(tmp_path: Path, begun: str) -> None:
    with started(tmp_path, "--seconds", "0.5") as process:
        process.until_ready()
        with connect(process) as connection:
            connection.sendall(begun.encode())
            status, headers, document = answer(connection)
            assert connection.recv(1) == b""
        assert (status, headers["content-type"], headers["connection"]) == (408, "application/json", "close")
        assert document == {"error": "the request did not arrive within 0.5 s"}
        assert ask(process.url, "/livez")[0] == 200


def test_a_client_that_asks_before_it_sends_is_answered_at_once(service: Process) -> None:
    with ExitStack() as closing:
        for _ in range(4):
            closing.enter_context(begin_upload(service, MAX_BODY, sent=0))
        assert ask(service.url, "/livez")[0] == 200
        last = closing.enter_context(begin_upload(service, MAX_BODY, sent=0, header="Expect: 100-continue\r\n"))
        status, headers, _ = answer(last)
        assert (status, headers["connection"], last.recv(1)) == (503, "close", b"")
    with begin_upload(service, len(SMALL_PICTURE), sent=0, header="Expect: 100-continue\r\n") as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 100 Continue\r\n")
        connection.sendall(SMALL_PICTURE)
        assert answer(connection)[0] == 200


# --- the parser --------------------------------------------------------------------------------------------------


def parse(bodies: Capacity, header: str, *body: bytes) -> Parser:
    parser = Parser(Adjustments(max_request_body_size=2 * MAX_BODY, inbuf_overflow=2 * MAX_BODY), bodies)
    head = f"POST /ocr HTTP/1.1\r\n{header}\r\n\r\n".encode()
    assert parser.received(head) == len(head)
    for part in body:
        assert parser.received(part) == len(part)
    return parser


def chunk(size: int) -> bytes:
    return f"{size:x}\r\n".encode() + bytes(size) + b"\r\n"


CHUNKED, LAST = "Transfer-Encoding: chunked", b"0\r\n\r\n"


def test_a_body_in_chunks_is_held_as_it_comes() -> None:
    bodies = Capacity(BODIES)
    parser = parse(bodies, CHUNKED, chunk(1000), chunk(2000))
    held = BODIES - bodies.free
    assert 3000 <= held < 3100
    assert parser.received(LAST) == len(LAST)
    assert (parser.completed, parser.refused, parser.headers["CONTENT_LENGTH"]) == (True, False, "3000")
    assert parser.get_body_stream().read() == bytes(3000)
    parser.close()
    parser.close()
    assert bodies.free == BODIES


def test_a_body_in_chunks_that_is_too_large_is_dropped_and_its_size_told() -> None:
    bodies = Capacity(BODIES)
    parser = parse(bodies, CHUNKED, *[chunk(1_000_000)] * 21, LAST)
    assert (parser.completed, parser.refused, parser.headers["CONTENT_LENGTH"]) == (True, False, "21000000")
    assert (bodies.free, parser.get_body_stream().read()) == (BODIES, b"")


def test_a_body_in_chunks_for_which_there_is_no_more_room_is_dropped() -> None:
    bodies = Capacity(3_000_000)
    parser = parse(bodies, CHUNKED, chunk(2_000_000))
    assert bodies.free < 1_000_000
    parser.received(chunk(1_000_000))
    assert (bodies.free, parser.refused) == (3_000_000, True)
    parser.received(LAST)
    assert parser.completed
    assert parser.error is None


def test_the_last_tenth_is_left_to_small_bodies() -> None:
    bodies = Capacity(10 * SMALL)
    assert parse(bodies, f"Content-Length: {9 * SMALL + 1}").refused
    assert not parse(bodies, f"Content-Length: {9 * SMALL}").refused
    assert parse(bodies, f"Content-Length: {SMALL + 1}").refused
    assert not parse(bodies, f"Content-Length: {SMALL}").refused
    assert parse(bodies, "Content-Length: 1").refused


def test_what_is_no_request_holds_nothing() -> None:
    bodies = Capacity(BODIES)
    parser = parse(bodies, f"Content-Length: {3 * MAX_BODY}")
    assert (parser.completed, parser.error.code, bodies.free) == (True, 413, BODIES)
    parser = parse(bodies, CHUNKED, b"no chunk\r\n")
    assert (parser.completed, parser.error.code) == (True, 400)
    parser.close()
    assert bodies.free == BODIES


def test_a_small_question_needs_no_upload(service: Process) -> None:
    status, headers, _ = request(service.url, "/ocr", b"")
    assert (status, headers["Content-Type"]) == (400, "application/json")
