"""The service's HTTP server (waitress): its port, its limits, and its shutdown.

SIGTERM or SIGINT starts draining: `/readyz` answers 503 immediately, probes are still answered, new requests are
refused with 503, and the process exits with code 0 when every request that has arrived is answered. After a second
signal or a timeout, the process drops the remaining requests and exits with code 1.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any, NoReturn

from image_analyzer.capacity import Capacity
from image_analyzer.service import MAX_BODY, THREADS, Application, Started
from prebake import State, timeline
from prebake.errors import ConfigError

logger = logging.getLogger(__name__)

DRAIN = 30.0
"""Seconds for active requests to finish after SIGTERM."""
CONNECTIONS = 200
"""Maximum open connections; more wait in the system's queue."""
IDLE = 60
"""Seconds after which a connection without a request is closed."""
MAX_HEADER = 16_384
"""Maximum bytes of a request's header."""
HEAPS = 2
"""Number of heaps of the C library, shared by all threads."""


class Stop:
    """The handler of SIGTERM and SIGINT: counts signals and wakes the server's loop."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self.asked = 0
        self._wake = wake

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.asked += 1
        self._wake()


class Server:
    """waitress on an open port, with limits on its memory."""

    def __init__(self, application: Application, listener: socket.socket) -> None:
        import waitress  # 30 ms with the imports of `uploads`; not needed if the port can't be opened

        from image_analyzer.uploads import BODIES, Channel

        self.application = application
        self._sockets: dict[int, Any] = {}
        self._draining = threading.Event()
        self._server: Any = waitress.create_server(
            application, map=self._sockets, sockets=[listener], threads=THREADS, ident=None,
            connection_limit=CONNECTIONS, channel_timeout=IDLE, max_request_header_size=MAX_HEADER,
            max_request_body_size=2 * MAX_BODY,  # between the limits, the service drops the body and answers
            inbuf_overflow=2 * MAX_BODY,  # waitress would write a larger body to a file; the disk may be read-only
            clear_untrusted_proxy_headers=True,
        )  # fmt: skip
        self._server.channel_class = partial(Channel, bodies=Capacity(BODIES), closing=self._draining)
        self.wake: Callable[[], None] = self._server.pull_trigger

    def run(self, stop: Stop, drain: float) -> int:
        """Serve until a signal, then drain for up to `drain` seconds; returns the number of unanswered requests."""
        while not stop.asked:
            self._turn(1)
        self._draining.set()
        self.application.drain()
        for channel in self._server.active_channels.values():
            for request in channel.requests:
                request.headers["CONNECTION"] = "close"
        under_way, deadline = self._under_way(), time.monotonic() + drain
        if under_way:
            logger.info("stopping: waiting up to %g s for active requests: %d", drain, under_way)
        while (under_way := self._under_way()) and stop.asked < 2 and (left := deadline - time.monotonic()) > 0:
            self._turn(min(left, 1))
        return under_way

    def _turn(self, timeout: float) -> None:
        from waitress import wasyncore

        wasyncore.loop(timeout=timeout, use_poll=True, map=self._sockets, count=1)

    def _under_way(self) -> int:
        return sum(channel.unanswered for channel in self._server.active_channels.values())

    def close(self, *, wait: bool) -> None:
        """Close all connections and the port; with `wait`, wait for the worker threads first."""
        from waitress import wasyncore

        if wait:
            self._server.task_dispatcher.shutdown()
        wasyncore.close_all(self._sockets)


def serve(application: Application, *, host: str, port: int, begin: Callable[[], None], drain: float = DRAIN) -> None:
    """Open the port, call `begin` (which must not block), and answer until SIGTERM or SIGINT.

    Active requests then get up to `drain` seconds to finish; if any does not, the process exits with code 1. Raises
    ConfigError if the port can't be opened.
    """
    listener = _listen(host, port)
    _share_heaps()
    server = Server(application, listener)
    stop = Stop(server.wake)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    timeline.mark("port open")
    logger.info(
        "listening on http://%s:%d; %s",
        host,
        port,
        "models load on first use" if application.lazy else "models are loading",
    )
    begin()
    if not application.lazy:
        threading.Thread(target=_watch, args=(application,), name="prebake-watch", daemon=True).start()
    unanswered = 0
    try:
        unanswered = server.run(stop, drain)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        server.close(wait=not unanswered)
    if unanswered:
        why = "a second signal came" if stop.asked > 1 else f"they took more than {drain:g} s (see --drain)"
        logger.error("stopped with unanswered requests: %d; %s", unanswered, why)
        _exit(1)
    logger.info("stopped")
    if any(status.state is State.LOADING for status in application.models.status()):
        _exit(0)


def _exit(code: int) -> NoReturn:
    """End the process while threads run framework code; the interpreter's normal shutdown would abort (SIGABRT)."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _share_heaps() -> None:
    """Make threads share the C library's heaps (man 3 mallopt), unless `MALLOC_ARENA_MAX` is set.

    By default each thread gets its own heap and keeps tens of megabytes of freed memory: 16 pictures of 25 megapixels,
    decoded one at a time, left 2.9 GB.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and "MALLOC_ARENA_MAX" not in os.environ:
        mallopt(-8, HEAPS)  # M_ARENA_MAX


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket. waitress could open it too, but leaks the socket if that fails."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1024)
    except OverflowError:
        listener.close()
        raise ConfigError(f"cannot open {host}:{port}: expected a port from 0 to 65535") from None
    except (OSError, UnicodeError) as error:
        listener.close()
        raise ConfigError(f"cannot open {host}:{port}: {getattr(error, 'strerror', None) or error}") from error
    return listener


def _watch(application: Application) -> None:
    with application.work():
        _until_ready(application.models)
    timeline.mark(timeline.READY)
    logger.info("ready after %.2f s", timeline.process.marks[timeline.READY])


def _until_ready(models: Started) -> None:
    """Wait for readiness, and log which required models have failed."""
    pause, seconds = threading.Event(), 0.005
    while not models.ready:
        if seconds < 1 and all(status.state in (State.READY, State.FAILED) for status in models.status()):
            failed = [status.name for status in models.status() if status.required and status.state is State.FAILED]
            if failed:
                logger.error("not ready: %s failed (the next request tries again)", ", ".join(failed))
                seconds = 1.0
        pause.wait(seconds)
