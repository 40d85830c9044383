"""The HTTP server (waitress) under the service: its port, its limits, and how it stops.

SIGTERM or SIGINT drains: readiness turns 503 at once, probes are still answered, new questions are refused with 503,
and the process exits with code 0 when every request that had arrived is answered. A second signal, or the end of the
time for that, cuts what is left, and the exit code is 1.
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
"""Seconds that requests under way get to finish after SIGTERM."""
CONNECTIONS = 200
"""Connections open at once; more wait in the system's queue."""
IDLE = 60
"""Seconds after which a connection without a request is closed."""
MAX_HEADER = 16_384
"""Bytes of a request's header."""
HEAPS = 2
"""Heaps of the C library that all threads share."""


class Stop:
    """The handler of SIGTERM and SIGINT: counts them, and wakes the server's loop."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self.asked = 0
        self._wake = wake

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.asked += 1
        self._wake()


class Server:
    """waitress on an open port, with limits on what it holds in memory."""

    def __init__(self, application: Application, listener: socket.socket) -> None:
        import waitress  # 30 ms with what `uploads` imports, which nobody pays whose port cannot be opened

        from image_analyzer.uploads import BODIES, Channel

        self.application = application
        self._sockets: dict[int, Any] = {}
        self._draining = threading.Event()
        self._server: Any = waitress.create_server(
            application, map=self._sockets, sockets=[listener], threads=THREADS, ident=None,
            connection_limit=CONNECTIONS, channel_timeout=IDLE, max_request_header_size=MAX_HEADER,
            max_request_body_size=2 * MAX_BODY,  # what is between is dropped as it comes, and answered by us
            inbuf_overflow=2 * MAX_BODY,  # a larger body would go to a file, and there may be nowhere to write
            clear_untrusted_proxy_headers=True,
        )  # fmt: skip
        self._server.channel_class = partial(Channel, bodies=Capacity(BODIES), closing=self._draining)
        self.wake: Callable[[], None] = self._server.pull_trigger

    def run(self, stop: Stop, drain: float) -> int:
        """Answer until a signal comes, then up to `drain` seconds more; how many requests are left unanswered."""
        while not stop.asked:
            self._turn(1)
        self._draining.set()
        self.application.drain()
        for channel in self._server.active_channels.values():
            for request in channel.requests:
                request.headers["CONNECTION"] = "close"
        under_way, deadline = self._under_way(), time.monotonic() + drain
        if under_way:
            logger.info("stopping: up to %g s for requests under way: %d", drain, under_way)
        while (under_way := self._under_way()) and stop.asked < 2 and (left := deadline - time.monotonic()) > 0:
            self._turn(min(left, 1))
        return under_way

    def _turn(self, timeout: float) -> None:
        from waitress import wasyncore

        wasyncore.loop(timeout=timeout, use_poll=True, map=self._sockets, count=1)

    def _under_way(self) -> int:
        return sum(channel.unanswered for channel in self._server.active_channels.values())

    def close(self, *, wait: bool) -> None:
        """Close all connections and the port; `wait` for the threads, which answer nothing any more."""
        from waitress import wasyncore

        if wait:
            self._server.task_dispatcher.shutdown()
        wasyncore.close_all(self._sockets)


def serve(application: Application, *, host: str, port: int, begin: Callable[[], None], drain: float = DRAIN) -> None:
    """Open the port, call `begin` (which must not block), and answer until SIGTERM or SIGINT.

    Requests under way then get up to `drain` seconds to finish; where some do not, the process exits with code 1.
    Raises ConfigError where the port cannot be opened.
    """
    listener = _listen(host, port)
    _share_heaps()
    server = Server(application, listener)
    stop = Stop(server.wake)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    timeline.mark("port open")
    logger.info(
        "http://%s:%d answers; %s",
        host,
        port,
        "models load when asked for" if application.lazy else "models are loading",
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
        why = "a second signal came" if stop.asked > 1 else f"they took more than {drain:g} s (--drain allows more)"
        logger.error("stopped with requests unanswered: %d; %s", unanswered, why)
        _exit(1)
    logger.info("stopped")
    if any(status.state is State.LOADING for status in application.models.status()):
        _exit(0)


def _exit(code: int) -> NoReturn:
    """End the process while threads are inside a framework: the interpreter's own end would abort them, and itself."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _share_heaps() -> None:
    """Have threads share the C library's heaps (man 3 mallopt), unless the environment says how many there are.

    By default each thread gets its own, and keeps tens of megabytes that it freed: 16 pictures of 25 megapixels, of
    which one was decoded at a time, left 2.9 GB.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and "MALLOC_ARENA_MAX" not in os.environ:
        mallopt(-8, HEAPS)  # M_ARENA_MAX


def _listen(host: str, port: int) -> socket.socket:
    """The port, open. waitress can open it too, and leaves its socket behind where it cannot."""
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
    """Wait for readiness, and say which models keep the service from it."""
    pause, seconds = threading.Event(), 0.005
    while not models.ready:
        if seconds < 1 and all(status.state in (State.READY, State.FAILED) for status in models.status()):
            failed = [status.name for status in models.status() if status.required and status.state is State.FAILED]
            if failed:
                logger.error("not ready: %s failed (tried again on the next request)", ", ".join(failed))
                seconds = 1.0
        pause.wait(seconds)
