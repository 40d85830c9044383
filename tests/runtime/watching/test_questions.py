"""Requests are written in one line, sent with the content type of their body, or made by a function."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from prebake.errors import ConfigError, PrebakeError
from prebake.telemetry.project import DeclaredRequest
from prebake.watching.questions import Answer, Question, declared_question, parse_question, read_questions


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server that answers with what it was asked; 418 at /teapot."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode("latin-1")
            kind = self.headers.get("Content-Type")
            self.send_response(418 if self.path == "/teapot" else 200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps([self.command, self.path, kind, body]).encode())

        do_GET = do_POST = do_PUT = do_DELETE = answer  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "cat.png").write_bytes(b"cat")
    (tmp_path / "asking_of_tests.py").write_text(
        "def text(url): return 'text ' + url[:7]\n"
        "def data(url): return {'b': 1, 'a': [2.5]}\n"
        "def raw(url): return b'\\x00'\n"
        "def fails(url): raise ValueError('no such voice')\n"
        "def odd(url): return object()\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    return tmp_path


@pytest.mark.parametrize(
    ("text", "title", "sent"),
    [
        ("/health", "GET /health", ["GET", "/health", None, ""]),
        ("put /x?y=1", "PUT /x?y=1", ["PUT", "/x?y=1", None, ""]),
        ("POST /caption @cat.png", "POST /caption", ["POST", "/caption", "image/png", "cat"]),
        ('POST /embed {"text": "a b"}', "POST /embed", ["POST", "/embed", "application/json", '{"text": "a b"}']),
        ("POST /say hello there", "POST /say", ["POST", "/say", "text/plain; charset=utf-8", "hello there"]),
    ],
)
def test_a_request_is_one_line(url: str, folder: Path, text: str, title: str, sent: list[str]) -> None:
    question = parse_question(text, "--request")
    assert question.title == title
    assert json.loads(question.ask(url, 30).body) == sent


def test_a_file_may_be_a_field_of_a_form(url: str, folder: Path) -> None:
    method, path, kind, body = json.loads(parse_question("POST /up picture=@cat.png", "--request").ask(url, 30).body)
    boundary = kind.removeprefix("multipart/form-data; boundary=")
    assert (method, path) == ("POST", "/up")
    assert body == (
        f'--{boundary}\r\nContent-Disposition: form-data; name="picture"; filename="cat.png"\r\n'
        f"Content-Type: image/png\r\n\r\ncat\r\n--{boundary}--\r\n"
    )


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("text", Answer(status=200, type="text/plain", body=b"text http://")),
        ("data", Answer(status=200, type="application/json", body=b'{"a": [2.5], "b": 1}')),
        ("raw", Answer(status=200, type="", body=b"\x00")),
    ],
)
def test_a_function_gets_the_address_and_returns_the_answer(url: str, folder: Path, name: str, answer: Answer) -> None:
    assert parse_question(f"asking_of_tests:{name}", "--request").ask(url, 30) == answer


def failure(question: Question, url: str) -> str:
    with pytest.raises(PrebakeError) as caught:
        question.ask(url, 30)
    return str(caught.value)


def test_a_request_that_gets_no_good_answer_is_told(url: str, folder: Path) -> None:
    assert failure(parse_question("/teapot", "--request"), url) == (
        'GET /teapot: was answered with 418: "[\\"GET\\", \\"/teapot\\", null, \\"\\"]"'
    )
    assert failure(parse_question("/x", "--request"), "http://127.0.0.1:1") == (
        "GET /x: gave no answer: ConnectionRefusedError: Connection refused"
    )
    assert failure(parse_question("asking_of_tests:fails", "--request"), url) == (
        "asking_of_tests:fails: failed: ValueError: no such voice"
    )
    assert failure(parse_question("asking_of_tests:odd", "--request"), url) == (
        "asking_of_tests:odd: failed: TypeError: Object of type object is not JSON serializable"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("POST caption", '--request: expected "METHOD PATH [@FILE | FIELD=@FILE | TEXT]", such as "POST /caption '
                         '@cat.jpg", or "module:function", found "POST caption"'),
        ("", '--request: expected "METHOD PATH [@FILE | FIELD=@FILE | TEXT]", such as "POST /caption @cat.jpg", or '
             '"module:function", found ""'),
        ("POST /x @dog.png", "--request: cannot read dog.png: No such file or directory"),
        ("POST /x picture=@dog.png", "--request: cannot read dog.png: No such file or directory"),
        ("no_such_module_of_tests:ask", "--request: cannot import no_such_module_of_tests:ask: No module named "
                                        "'no_such_module_of_tests'"),
        ("asking_of_tests:nothing", "--request: cannot import asking_of_tests:nothing: module 'asking_of_tests' has no "
                                    "attribute 'nothing'"),
    ],
)  # fmt: skip
def test_a_wrong_request_is_refused(folder: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_question(text, "--request")
    assert str(caught.value) == message


def test_a_file_of_requests_has_one_in_each_line(url: str, folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "dog.png").write_bytes(b"dog")
    (folder / "sub" / "requests.txt").write_text("# typical\n\n/health\nPOST /caption @dog.png\n")
    first, second = read_questions(folder / "sub" / "requests.txt")
    assert (first.title, json.loads(second.ask(url, 30).body)[3]) == ("GET /health", "dog")
    (folder / "requests.txt").write_text("/health\nPOST x\n")
    with pytest.raises(ConfigError, match=r'^requests\.txt:2: expected "METHOD PATH'):
        read_questions(Path("requests.txt"))
    with pytest.raises(ConfigError) as caught:
        read_questions(Path("none.txt"))
    assert str(caught.value) == "none.txt: cannot read these requests: No such file or directory"


def test_a_declared_request_is_sent_with_its_content_type(url: str, folder: Path) -> None:
    declared = DeclaredRequest(method="POST", path="/caption", file=folder / "cat.png", type="image/x-cat")
    assert asked(declared, url, folder) == ["POST", "/caption", "image/x-cat", "cat"]
    assert asked(replace(declared, type=None), url, folder) == ["POST", "/caption", "image/png", "cat"]
    assert asked(DeclaredRequest(method="DELETE", path="/x"), url, folder) == ["DELETE", "/x", None, ""]


def test_a_declared_line_is_that_of_the_option(
    url: str, folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert asked(DeclaredRequest(line="POST /x @cat.png"), url, folder) == ["POST", "/x", "image/png", "cat"]
    raw = declared_question(DeclaredRequest(line="asking_of_tests:raw"), "prebake.toml", folder)
    assert raw.ask(url, 30).body == b"\0"


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        (DeclaredRequest(method="POST", path="/x", file=Path("dog.png")),
         "prebake.toml: requests[0]: cannot read dog.png: No such file or directory"),
        (DeclaredRequest(line="health"),
         'prebake.toml: requests[0]: expected "METHOD PATH [@FILE | FIELD=@FILE | TEXT]", such as "POST /caption '
         '@cat.jpg", or "module:function", found "health"'),
    ],
)  # fmt: skip
def test_a_wrong_declared_request_is_refused(folder: Path, declared: DeclaredRequest, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        declared_question(declared, "prebake.toml: requests[0]", folder)
    assert str(caught.value) == message


def asked(declared: DeclaredRequest, url: str, folder: Path) -> Any:
    return json.loads(declared_question(declared, "prebake.toml", folder).ask(url, 30).body)
