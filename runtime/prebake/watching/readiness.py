"""What tells that a service is ready: a URL, a path, an open port, a line in its output, or its end.

Without any of these, `AtAnyPath` asks the usual paths on the ports where the service listens.
"""

from __future__ import annotations

import http.client
import json
import re
import signal
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

from prebake.documents.messages import quote
from prebake.errors import ConfigError
from prebake.watching.connection import connect

PATHS = ("/readyz", "/health", "/healthz", "/ready", "/")
"""Paths that are asked in turn where none is named; the first that exists decides."""
POLL = 0.005
"""Seconds between two looks."""
_ABSENT = (404, 405, 501)


class Watched(Protocol):
    """A started service."""

    def alive(self) -> bool:
        """Whether it is still running."""

    def exit_code(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""

    def addresses(self) -> Sequence[str]:
        """`http://HOST:PORT` of each port on which it listens, as far as known."""

    def log(self) -> str:
        """Its output so far."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Told:
    """What told that the service is ready."""

    how: str
    """`GET /health answered 200`"""
    url: str = ""
    """The service's address; empty if no port is known."""
    document: Any = None
    """The answer, if it was JSON."""


class Ready(Protocol):
    """One way to tell."""

    seen: str
    """What the last look saw, for messages."""

    def look(self, service: Watched, left: float) -> Told | None:
        """Look once, for at most `left` seconds; None if the service is not ready."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Waited:
    """The result of `wait`."""

    told: Told | None
    """None if it did not become ready."""
    seconds: float
    seen: str
    ended: bool = False
    """Whether it ended before."""


def wait(
    service: Watched, ready: Ready, timeout: float, *, started: float | None = None,
    meanwhile: Callable[[], None] | None = None,
) -> Waited:  # fmt: skip
    """Wait until the service is ready, ends, or `timeout` seconds have passed since `started` (`time.perf_counter`)."""
    began = time.perf_counter() if started is None else started
    while (left := timeout - (time.perf_counter() - began)) > 0:
        alive = service.alive()  # before the look: what was written last is seen after the end, too
        told = ready.look(service, left)
        if told is not None or not alive:
            return Waited(told=told, seconds=time.perf_counter() - began, seen=ready.seen, ended=told is None)
        if meanwhile is not None:
            meanwhile()
        time.sleep(POLL)
    return Waited(told=None, seconds=time.perf_counter() - began, seen=ready.seen)


def unready(service: Watched, waited: Waited, timeout: float) -> str:
    """Why the service did not become ready, and what to do about it."""
    if not waited.ended:
        return (
            f"was not ready within {timeout:g} s ({waited.seen}): name what tells it with --ready, or wait longer with "
            "--timeout"
        )
    code = service.exit_code() or 0
    job = ": a job is done when it ends: --until-exit" if code == 0 else ""
    return f"ended with {ending(code)} before it was ready{job}"


def ending(code: int) -> str:
    """How a process ended, from its exit code; a signal is negative."""
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:  # a real-time signal
        return f"signal {-code}"
    return f"signal {-code} ({name}{', perhaps out of memory' if name == 'SIGKILL' else ''})"


def parse_ready(text: str, where: str) -> Ready:
    """A URL, a path on the service's port, `tcp`, or `tcp:PORT`. Raises ConfigError that begins with `where`."""
    if re.fullmatch(r"(/|https?://[^/\s])\S*", text):
        return AtUrl(text)
    found = re.fullmatch(r"tcp(?::(\d{1,5}))?", text)
    if found and 0 < int(found[1] or 1) < 65536:
        return AtPort(int(found[1]) if found[1] else None)
    raise ConfigError(f'{where}: {quote(text)} is not a URL, a path such as "/health", "tcp" or "tcp:PORT"')


class AtUrl:
    """A URL, or a path on the service's port, answers with a status below 400."""

    def __init__(self, address: str) -> None:
        self._base, self._path = "", address
        if not address.startswith("/"):
            parts = urlsplit(address)
            self._base = f"{parts.scheme}://{parts.netloc}"
            self._path = address[len(self._base) :] or "/"
        self.seen = f"nothing answers at {address}"

    def refuse_others(self) -> None:
        """Raise ConfigError if something answers at this URL before the service is started."""
        if self._base and isinstance(answer := _get(self._base, self._path, 2), tuple):
            raise ConfigError(
                f"{self._base}{self._path} is answered already ({answer[0]}): something else listens there; end it, or "
                "give the service another port"
            )

    def look(self, service: Watched, left: float) -> Told | None:
        for base in [self._base] if self._base else service.addresses():
            answer = _get(base, self._path, left)
            if not isinstance(answer, tuple):
                continue
            self.seen = how = f"GET {self._path} answered {answer[0]}"
            if answer[0] < 400:
                return Told(how=how, url=base, document=_document(answer[1]))
        return None


class AtAnyPath:
    """The first of the usual paths that exists answers; if none exists, any HTTP; if nothing speaks HTTP, a port."""

    def __init__(self, paths: Sequence[str] = PATHS) -> None:
        self._paths = paths
        self._patience = 1.0
        self.seen = "it listens on no port"

    def look(self, service: Watched, left: float) -> Told | None:
        other = None
        for base in service.addresses():
            answer = self._ask(base, min(left, self._patience))
            if isinstance(answer, Told):
                return answer
            other = other if answer is None else base
        if other is None:
            return None
        self.seen = f"port {_port(other)} accepts connections, and does not speak HTTP"
        return Told(how=self.seen, url=other)

    def _ask(self, base: str, timeout: float) -> Told | NotHttp | None:
        """Ready, not speaking HTTP, or neither yet."""
        for path in self._paths:
            answer = _get(base, path, timeout)
            if isinstance(answer, NotHttp):
                return answer
            if answer is None:
                self.seen = f"port {_port(base)} does not answer"
                self._patience *= 2  # a server that is still loading may queue requests
                return None
            self.seen = how = f"GET {path} answered {answer[0]}"
            if answer[0] not in _ABSENT:
                # below 500: a service that refuses strangers (401, 403) is ready too
                return Told(how=how, url=base, document=_document(answer[1])) if answer[0] < 500 else None
        return Told(how=f"port {_port(base)} answers HTTP; it has none of {', '.join(self._paths)}", url=base)


class AtPort:
    """A port accepts connections."""

    def __init__(self, port: int | None = None) -> None:
        self._port = port
        self.seen = "it listens on no port" if port is None else f"port {port} accepts no connection"

    def look(self, service: Watched, left: float) -> Told | None:
        import socket

        for base in service.addresses() if self._port is None else [f"http://127.0.0.1:{self._port}"]:
            host, port = urlsplit(base).hostname or "", _port(base)
            try:
                socket.create_connection((host, port), timeout=left).close()
            except OSError:
                continue
            self.seen = f"port {port} accepts connections"
            return Told(how=self.seen, url=base)
        return None


class AtLine:
    """A line of its output contains this text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self.seen = f"no line of its output contains {quote(text)}"

    def look(self, service: Watched, left: float) -> Told | None:
        if self._text not in service.log():
            return None
        self.seen = f"its output contains {quote(self._text)}"
        return Told(how=self.seen, url=next(iter(service.addresses()), ""))


class AtExit:
    """It ends with exit code 0."""

    def __init__(self) -> None:
        self.seen = "it is still running"

    def look(self, service: Watched, left: float) -> Told | None:
        code = service.exit_code()
        if code is None:
            return None
        self.seen = f"it ended with exit code {code}"
        return Told(how=self.seen) if code == 0 else None


class NotHttp:
    """A port answered, but not with HTTP."""


def _get(base: str, path: str, timeout: float) -> tuple[int, bytes] | NotHttp | None:
    """Status and body; None if nothing answers. Raises ConfigError for a certificate that is not trusted."""
    connection = connect(base, timeout)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        response = connection.getresponse()
        return response.status, response.read(1 << 20)
    except http.client.RemoteDisconnected:
        return None
    except (http.client.BadStatusLine, http.client.LineTooLong):
        return NotHttp()
    except ssl.SSLCertVerificationError as error:
        raise ConfigError(
            f"{base}: its certificate is not trusted here ({error.verify_message}): set SSL_CERT_FILE to a file with "
            "it, or with that of its authority"
        ) from error
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _document(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None


def _port(base: str) -> int:
    return urlsplit(base).port or 80
