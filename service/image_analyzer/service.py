"""The reference service over HTTP: analyses images, and tells whether and how it started.

The port answers before any framework is imported: models load in the background, and a request that
comes early waits for the models it needs. Requests carry an image file as their body; answers are JSON.

==========  =========================================================================
GET /       one page to try it
GET /livez  200 at once: the process serves
GET /readyz 200 when every required model is loaded (with --lazy: when none has failed), else 503
GET /startup  the timeline, the models' tiers, what was deferred, the ratio to a recorded baseline; a page for browsers
GET /metrics  the same for Prometheus
POST /caption /ocr /florence?task=<OD>&text=…  /analyze
==========  =========================================================================
"""

from __future__ import annotations

import json
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from http import HTTPStatus
from importlib import resources
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qs

from image_analyzer import metrics
from image_analyzer.analyzer import Analyzer
from image_analyzer.idle import WhenIdle
from image_analyzer.images import decode
from prebake import Start, State, Status, report, timeline
from prebake.errors import ConfigError, PrebakeError, UnknownModelError

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger(__name__)

MAX_BODY = 20_000_000
"""Bytes of an image file; a larger one is answered with 413."""
QUESTIONS = 16
"""Questions under way at once; one more is answered with 503 and a time to come back."""
THREADS = QUESTIONS + 4
"""The rest answers probes: a burst of questions while models load must not make a liveness probe fail."""


HTML = "text/html; charset=utf-8"


class Started(Protocol):
    """The models behind a service: `prebake.Models`, or those of the naive baseline."""

    @property
    def ready(self) -> bool: ...
    def status(self) -> tuple[Status, ...]: ...
    def __getitem__(self, name: str, /) -> Any: ...
    def __contains__(self, name: object, /) -> bool: ...


@dataclass(frozen=True, slots=True)
class Answer:
    """One response."""

    body: bytes
    status: HTTPStatus = HTTPStatus.OK
    type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()

    @classmethod
    def json(cls, document: Any, status: HTTPStatus = HTTPStatus.OK, **headers: str) -> Answer:
        return cls((json.dumps(document, ensure_ascii=False) + "\n").encode(), status, headers=tuple(headers.items()))

    @classmethod
    def error(cls, status: HTTPStatus, message: str, **headers: str) -> Answer:
        return cls.json({"error": message}, status, **headers)


class Application:
    """The WSGI application (PEP 3333). Safe under threads.

    `lazy` says that models load when they are asked for; `idle` is told of all work; `/startup` compares with
    `baseline`.
    """

    def __init__(
        self, models: Started, *, lazy: bool = False, idle: WhenIdle | None = None, baseline: Start | None = None
    ) -> None:
        self.models, self.lazy = models, lazy
        self.work = idle.work if idle else nullcontext
        self._baseline = baseline
        self._analyzer = Analyzer(models)
        self._room = threading.BoundedSemaphore(QUESTIONS)
        self.counts = metrics.Counts()
        self._get: dict[str, Callable[[], Answer]] = {
            "/": _page,
            "/livez": lambda: Answer.json({"live": True}),
            "/readyz": self._ready,
            "/startup": self._startup,
            "/metrics": self._metrics,
        }
        self._post: dict[str, Callable[..., Any]] = {
            "/caption": lambda image: {"caption": self._analyzer.caption(image)},
            "/ocr": lambda image: {"text": self._analyzer.read(image)},
            "/florence": self._florence,
            "/analyze": self._analyzer.analyze,
        }

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        answer = self._answer(environ)
        start_response(
            f"{answer.status.value} {answer.status.phrase}",
            [("Content-Type", answer.type), ("Content-Length", str(len(answer.body))), *answer.headers],
        )
        return [b""] if environ["REQUEST_METHOD"] == "HEAD" else [answer.body]

    def _answer(self, environ: dict[str, Any]) -> Answer:
        path, method = environ.get("PATH_INFO") or "/", environ["REQUEST_METHOD"]
        allowed = ["POST"] if path in self._post else ["GET", "HEAD"] if path in self._get else []
        if not allowed:
            known = ", ".join([*self._get, *self._post])
            return Answer.error(HTTPStatus.NOT_FOUND, f"there is no {path} (there are: {known})")
        if method not in allowed:
            named = ", ".join(allowed)
            return Answer.error(HTTPStatus.METHOD_NOT_ALLOWED, f"{path} takes {named}", Allow=named)
        if method != "POST":
            page = path == "/startup" and "text/html" in environ.get("HTTP_ACCEPT", "")
            return self._startup_page() if page else self._get[path]()
        return self._question(path, environ)

    def _question(self, path: str, environ: dict[str, Any]) -> Answer:
        length = int(environ.get("CONTENT_LENGTH") or 0)
        if length > MAX_BODY:
            return Answer.error(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"an image may have {MAX_BODY:,} bytes")
        if not self._room.acquire(blocking=False):
            return Answer.error(HTTPStatus.SERVICE_UNAVAILABLE, f"{QUESTIONS} questions are under way already",
                                **{"Retry-After": "1"})  # fmt: skip
        try:
            with self.work(), self.counts.time(path) as outcome:
                answer = self._answer_about(path, environ["wsgi.input"].read(length), environ.get("QUERY_STRING", ""))
                outcome.status = answer.status
        finally:
            self._room.release()
        return answer

    def _answer_about(self, path: str, body: bytes, query: str) -> Answer:
        try:
            document = self._post[path](decode(body), **_parameters(path, query))
        except UnknownModelError as error:
            return Answer.error(HTTPStatus.NOT_FOUND, str(error))
        except ConfigError as error:
            return Answer.error(HTTPStatus.BAD_REQUEST, str(error))
        except PrebakeError as error:
            return Answer.error(HTTPStatus.SERVICE_UNAVAILABLE, str(error), **{"Retry-After": "5"})
        except Exception:
            logger.exception("%s failed", path)
            return Answer.error(HTTPStatus.INTERNAL_SERVER_ERROR, f"{path} failed; the service's log says why")
        timeline.mark(timeline.FIRST_ANSWER)
        return Answer.json(document)

    def _florence(self, image: Image, task: str = "<CAPTION>", text: str = "") -> Any:
        return {"task": task, "result": self._analyzer.florence(image, task, text)}

    def _ready(self) -> Answer:
        ready = is_ready(self.models, lazy=self.lazy)
        document = {"ready": ready, "models": self._statuses()}
        return Answer.json(document, HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE)

    def _startup(self) -> Answer:
        return Answer.json(self._how_it_started(), Vary="Accept")

    def _startup_page(self) -> Answer:
        from prebake import startup_page  # 2 ms that only those pay who look

        return Answer(startup_page(self._how_it_started()).encode(), type=HTML, headers=(("Vary", "Accept"),))

    def _how_it_started(self) -> dict[str, Any]:
        return report.document(timeline.process, self.models.status(), self._baseline)

    def _metrics(self) -> Answer:
        ready = is_ready(self.models, lazy=self.lazy)
        text = metrics.text(self.models.status(), timeline.process, self.counts, ready=ready)
        return Answer(text.encode(), type="text/plain; version=0.0.4; charset=utf-8")

    def _statuses(self) -> dict[str, Any]:
        return {status.name: status.to_dict() for status in self.models.status()}


def is_ready(models: Started, *, lazy: bool) -> bool:
    """Whether questions may come: every required model is loaded or, where they load when asked for, none failed."""
    if not lazy:
        return models.ready
    return not any(status.required and status.state is State.FAILED for status in models.status())


def _parameters(path: str, query: str) -> dict[str, str]:
    """The query's, each once. Raises ConfigError for one that the path does not take."""
    found = parse_qs(query, keep_blank_values=True)
    known = ("task", "text") if path == "/florence" else ()
    unknown = sorted(found.keys() - set(known))
    if unknown:
        raise ConfigError(f"{path} takes {' and '.join(known) or 'no parameters'}, not {', '.join(unknown)}")
    return {name: values[-1] for name, values in found.items()}


def _page() -> Answer:
    page = resources.files("image_analyzer").joinpath("page.html").read_bytes()
    return Answer(page, type=HTML)


def serve(application: Application, *, host: str, port: int, begin: Callable[[], None]) -> None:
    """Open the port, call `begin` (which must not block), and answer until SIGTERM or SIGINT.

    Raises ConfigError where the port cannot be opened.
    """
    import waitress

    # twice the limit, so that a body somewhat too large is answered by us and not cut off
    server = waitress.create_server(
        application, sockets=[_listen(host, port)], threads=THREADS, ident=None,
        max_request_body_size=2 * MAX_BODY,
        inbuf_overflow=3 * MAX_BODY,  # a larger body would go to a file, and there may be nowhere to write
        clear_untrusted_proxy_headers=True,
    )  # fmt: skip
    signal.signal(signal.SIGTERM, _stop)
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
    try:
        server.run()
    finally:
        server.close()
    logger.info("stopped")


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


def _stop(number: int, frame: object) -> None:
    raise SystemExit(0)  # waitress finishes the requests under way and leaves its loop


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
