"""Limits the memory of request bodies.

waitress reads each request's whole body into memory before it calls the application, on every open connection. The
subclasses here reserve a body's length as soon as its header has arrived. If the reservation fails, they read the body
and drop it, because a client that is still sending would miss the answer if the server closed the connection. The
application then finds `REFUSED` in its environment.
"""

from __future__ import annotations

import io
import json
import time
from functools import partial
from http import HTTPStatus
from typing import Any

from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.task import WSGITask
from waitress.utilities import Error

from image_analyzer.capacity import Capacity
from image_analyzer.service import MAX_BODY, REFUSED

BODIES = 100_000_000
"""Maximum bytes of all bodies in memory; a request that needs more gets status 503."""
SMALL = 1_000_000
"""Maximum bytes of a small body. Only small bodies may use the last tenth of `BODIES`."""
SECONDS = 60
"""Maximum seconds from a request's first byte to its last; a slower one gets status 408."""


class Dropped:
    """Replaces a body's buffer: counts the bytes and keeps none."""

    def __init__(self, size: int = 0) -> None:
        self._size = size

    def append(self, data: bytes) -> None:
        self._size += len(data)

    def __len__(self) -> int:
        return self._size

    def getfile(self) -> io.BytesIO:
        return io.BytesIO()

    def close(self) -> None:
        pass


class RequestTimeoutError(Error):  # type: ignore[misc]  # waitress has no types
    """The answer to a request that does not arrive in time."""

    code, reason = HTTPStatus.REQUEST_TIMEOUT.value, HTTPStatus.REQUEST_TIMEOUT.phrase

    def to_response(self, ident: str | None = None) -> tuple[str, list[tuple[str, str]], bytes]:
        body = (json.dumps({"error": self.body}) + "\n").encode()
        return f"{self.code} {self.reason}", [("Content-Type", "application/json")], body


class Parser(HTTPRequestParser):  # type: ignore[misc]
    """One request. Its body is kept only if `bodies` has room for it."""

    expect_continue: bool

    def __init__(self, adj: Any, bodies: Capacity) -> None:
        super().__init__(adj)
        self._bodies = bodies
        self._held = 0
        self._admitted = False
        self.refused = False
        self.began = time.monotonic()

    def received(self, data: bytes) -> int:
        consumed = int(super().received(data))
        if self.body_rcv is None or self.error:
            return consumed
        if not self._admitted:  # the header is complete
            self._admitted = True
            self._reserve(self.content_length)
            if self.refused and self.expect_continue:
                # the client has not sent the body yet, and will not after an answer
                self.expect_continue, self.completed = False, True
                self.headers["CONNECTION"] = "close"
        elif self.chunked:
            self._reserve(consumed)
        return consumed

    def _reserve(self, size: int) -> None:
        """Reserve `size` more bytes, or drop the body."""
        if isinstance(self.body_rcv.buf, Dropped):
            return
        total = self._held + size
        fits = total <= MAX_BODY
        if fits and self._bodies.try_take(size, spare=0 if total <= SMALL else self._bodies.total // 10):
            self._held = total
        else:
            self.refused = fits  # if it is too large, the application refuses it anyway
            self._drop()

    def _drop(self) -> None:
        if self.body_rcv is not None:
            before = self.body_rcv.getbuf()
            self.body_rcv.buf = Dropped(len(before))
            before.close()
        held, self._held = self._held, 0
        self._bodies.give(held)

    def close(self) -> None:
        """Release the memory. Safe to call again, and while the request is still arriving."""
        self._drop()

    def time_out(self) -> None:
        """Answer with an error instead of waiting for the rest."""
        self._drop()
        self.error = RequestTimeoutError(f"the request did not arrive within {SECONDS} s")
        self.completed = True


class Task(WSGITask):  # type: ignore[misc]
    """Tells the application whether the body was dropped."""

    def get_environment(self) -> dict[str, Any]:
        environ: dict[str, Any] = super().get_environment()
        environ[REFUSED] = self.request.refused
        return environ


def _is_question(request: Parser) -> bool:
    return getattr(request, "command", "") == "POST"  # missing if the header could not be parsed


class Channel(HTTPChannel):  # type: ignore[misc]
    """A connection. While `closing` is set, each answer closes it, so a stopping server gets no further requests."""

    task_class = Task
    request: Any

    def __init__(self, *arguments: Any, bodies: Capacity, closing: Any, **named: Any) -> None:
        self.parser_class = partial(Parser, bodies=bodies)
        self._closing = closing
        self._question = False
        super().__init__(*arguments, **named)

    def readable(self) -> bool:
        """Also checks the timeout: waitress calls this at least once a second."""
        request = self.request
        if request is not None and not self.requests and time.monotonic() - request.began > SECONDS:
            with self.requests_lock:
                self.request = None
                if not (self.will_close or self.close_when_flushed):
                    request.time_out()
                    self.requests.append(request)
                    self.server.add_task(self)
        return bool(super().readable())

    @property
    def unanswered(self) -> bool:
        """Whether a request for analysis has arrived and its answer is not sent. Probes do not count."""
        if any(_is_question(request) for request in tuple(self.requests)):
            return True
        return self._question and self.total_outbufs_len > 0

    def service(self) -> None:
        self._question = _is_question(self.requests[0])
        if self._closing.is_set():
            self.requests[0].headers["CONNECTION"] = "close"
        super().service()
        if self.request is not None:  # the time of the previous answer must not count
            self.request.began = time.monotonic()

    def handle_close(self) -> None:
        super().handle_close()
        if self.request is not None:
            self.request.close()
