"""The requests that a watched service gets: over HTTP, or made by a function of the user's."""

from __future__ import annotations

import http.client
import json
import mimetypes
import os
import re
import sys
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from prebake.documents.messages import one_line, quote, reason
from prebake.errors import ConfigError, PrebakeError
from prebake.telemetry.services import Request
from prebake.watching.connection import connect

if TYPE_CHECKING:
    from prebake.telemetry.project import DeclaredRequest

ANSWER = 600.0
"""Seconds for one answer."""
SYNTAX = "METHOD PATH [@FILE | FIELD=@FILE | TEXT]"
_FUNCTION = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
_FORM = re.compile(r"([A-Za-z_][\w.-]*)=@(.+)", re.ASCII)
_BOUNDARY = "prebake-7d1c5b1e9f3a4e0c"


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """The answer to one request."""

    status: int
    type: str
    """Content type; empty if none was sent."""
    body: bytes = field(repr=False)


class Question(Protocol):
    """One request."""

    title: str
    """`POST /caption`"""

    def ask(self, url: str, timeout: float) -> Answer:
        """Send it to the service at this address. Raises PrebakeError without an answer of status 2xx."""


def send(question: Question, url: str) -> Answer:
    """Ask the service at this address, which is empty if no port of it is known. Raises PrebakeError."""
    if not url:
        raise ConfigError(f"{question.title}: not sent: no port of the service is known: name it with --ready URL")
    return question.ask(url, ANSWER)


class HttpQuestion:
    """A request over HTTP."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self.title = f"{request.method} {request.path}"

    def ask(self, url: str, timeout: float) -> Answer:
        request = self._request
        headers = {} if request.content_type is None else {"Content-Type": request.content_type}
        connection = connect(url, timeout)
        try:
            connection.request(request.method, request.path, request.body, headers)
            response = connection.getresponse()
            answer = Answer(status=response.status, type=response.headers.get("Content-Type", ""), body=response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise PrebakeError(f"{self.title}: gave no answer: {one_line(error)}") from error
        finally:
            connection.close()
        if not 200 <= answer.status < 300:
            said = quote(answer.body[:200].decode("utf-8", "replace"))
            raise PrebakeError(f"{self.title}: was answered with {answer.status}: {said}")
        return answer


class FunctionQuestion:
    """`module:function`, called with the service's address. What it returns is the answer: text, bytes or JSON."""

    def __init__(self, name: str, where: str) -> None:
        """Import the module; the current folder is searched too. Raises ConfigError that begins with `where`."""
        self.title = name
        module, _, function = name.partition(":")
        if (here := os.getcwd()) not in sys.path:  # noqa: PTH109
            sys.path.insert(0, here)
        try:
            self._function = getattr(import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"{where}: cannot import {name}: {reason(error)}") from error

    def ask(self, url: str, timeout: float) -> Answer:
        try:
            return _answer(self._function(url))
        except Exception as error:
            raise PrebakeError(f"{self.title}: failed: {one_line(error)}") from error


def _answer(value: Any) -> Answer:
    if isinstance(value, bytes):
        return Answer(status=200, type="", body=value)
    if isinstance(value, str):
        return Answer(status=200, type="text/plain", body=value.encode())
    return Answer(status=200, type="application/json", body=json.dumps(value, sort_keys=True).encode())


def parse_question(text: str, where: str, folder: Path = Path()) -> Question:
    """`GET /health`, `POST /caption @cat.png`, `POST /upload picture=@cat.png` (a form), `POST /embed {"text": "x"}`,
    `/path`, or `module:function`. Files are relative to `folder`. Raises ConfigError that begins with `where`."""
    text = text.strip()
    if _FUNCTION.fullmatch(text):
        return FunctionQuestion(text, where)
    method, _, rest = text.partition(" ") if not text.startswith("/") else ("GET", "", text)
    path, _, body = rest.strip().partition(" ")
    if not (method.isascii() and method.isalpha()) or not path.startswith("/"):
        raise ConfigError(
            f'{where}: expected "{SYNTAX}", such as "POST /caption @cat.jpg", or "module:function", found {quote(text)}'
        )
    return HttpQuestion(_request(method.upper(), path, body.strip(), where, folder))


def _request(method: str, path: str, body: str, where: str, folder: Path) -> Request:
    if not body:
        return Request(method=method, path=path)
    if body.startswith("@"):
        file = folder / body[1:]
        return Request(method=method, path=path, body=_read(file, where), content_type=type_of(file))
    if form := _FORM.fullmatch(body):
        file = folder / form[2]
        content, kind = _form(form[1], file, _read(file, where))
        return Request(method=method, path=path, body=content, content_type=kind)
    try:
        json.loads(body)
    except ValueError:
        return Request(method=method, path=path, body=body.encode(), content_type="text/plain; charset=utf-8")
    return Request(method=method, path=path, body=body.encode(), content_type="application/json")


def _read(file: Path, where: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{where}: cannot read {file}: {reason(error)}") from error


def type_of(file: Path) -> str:
    """The content type by a file's name."""
    return mimetypes.guess_type(file.name)[0] or "application/octet-stream"


def _form(field: str, file: Path, content: bytes) -> tuple[bytes, str]:
    """A form with one file (RFC 7578): its bytes and its content type."""
    name = file.name.replace('"', "%22")
    head = (
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n'
        f"Content-Type: {type_of(file)}\r\n\r\n"
    )
    return head.encode() + content + f"\r\n--{_BOUNDARY}--\r\n".encode(), f"multipart/form-data; boundary={_BOUNDARY}"


def read_questions(path: Path) -> list[Question]:
    """A file of requests, one in each line; empty lines and lines that begin with # are skipped. Raises ConfigError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read these requests: {reason(error)}") from error
    return [
        parse_question(line, f"{path}:{number}", path.parent)
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]


def declared_question(declared: DeclaredRequest, where: str, folder: Path) -> Question:
    """A request of `prebake.toml` in this folder. Raises ConfigError that begins with `where`."""
    if declared.line is not None:
        return parse_question(declared.line, where, folder)
    request = Request(method=declared.method, path=declared.path)
    if declared.file is not None:
        kind = declared.type or type_of(declared.file)
        request = replace(request, body=_read(declared.file, where), content_type=kind)
    return HttpQuestion(request)
