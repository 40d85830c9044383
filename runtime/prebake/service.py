"""The reference service over HTTP: analyses images, and tells whether and how it started.

The port answers before any framework is imported: models load in the background, and a request that
comes early waits for the models it needs. Requests carry an image file as their body; answers are JSON.

==========  =========================================================================
GET /       one page to try it
GET /livez  200 at once: the process serves
GET /readyz 200 when every required model is loaded, else 503 with each model's state
GET /startup  the timeline, the models' tiers, what was deferred
GET /metrics  the same for Prometheus
POST /caption /ocr /florence?task=<OD>&text=…  /analyze
==========  =========================================================================
"""

from __future__ import annotations

import json
import logging
import signal
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from importlib import resources
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qs

from prebake import deferred, metrics, timeline
from prebake.analyzer import Analyzer, decode
from prebake.errors import ConfigError, PrebakeError
from prebake.models import State, Status

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger(__name__)

MAX_BODY = 20_000_000
"""Bytes of an image file; a larger one is answered with 413."""
THREADS = 8


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
    """The WSGI application (PEP 3333). Safe under threads."""

    def __init__(self, models: Started) -> None:
        self._models = models
        self._analyzer = Analyzer(models)
        self.counts = metrics.Counts()
        self._get: dict[str, Callable[[], Answer]] = {
            "/": _page,
            "/livez": lambda: Answer.json({"live": True}),
            "/readyz": self._ready,
            "/startup": self._startup,
            "/metrics": self._metrics,
        }
        self._post: dict[str, Callable[[Image, dict[str, str]], Any]] = {
            "/caption": lambda image, query: {"caption": self._analyzer.caption(image)},
            "/ocr": lambda image, query: {"text": self._analyzer.read(image)},
            "/florence": self._florence,
            "/analyze": lambda image, query: self._analyzer.analyze(image),
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
        allowed = "POST" if path in self._post else "GET, HEAD" if path in self._get else ""
        if not allowed:
            known = ", ".join([*self._get, *self._post])
            return Answer.error(HTTPStatus.NOT_FOUND, f"there is no {path} (there are: {known})")
        if method not in allowed:
            return Answer.error(HTTPStatus.METHOD_NOT_ALLOWED, f"{path} takes {allowed}", Allow=allowed)
        if method != "POST":
            return self._get[path]()
        return self._question(path, environ)

    def _question(self, path: str, environ: dict[str, Any]) -> Answer:
        length = int(environ.get("CONTENT_LENGTH") or 0)
        if length > MAX_BODY:
            return Answer.error(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"an image may have {MAX_BODY:,} bytes")
        query = {name: values[-1] for name, values in parse_qs(environ.get("QUERY_STRING", "")).items()}
        with self.counts.time(path) as outcome:
            try:
                document = self._post[path](decode(environ["wsgi.input"].read(length)), query)
            except ConfigError as error:
                outcome.status = HTTPStatus.BAD_REQUEST
                return Answer.error(outcome.status, str(error))
            except PrebakeError as error:
                outcome.status = HTTPStatus.SERVICE_UNAVAILABLE
                return Answer.error(outcome.status, str(error), **{"Retry-After": "5"})
            except Exception:
                outcome.status = HTTPStatus.INTERNAL_SERVER_ERROR
                logger.exception("%s failed", path)
                return Answer.error(outcome.status, f"{path} failed; the service's log says why")
        timeline.mark(timeline.FIRST_ANSWER)
        return Answer.json(document)

    def _florence(self, image: Image, query: dict[str, str]) -> Any:
        unknown = query.keys() - {"task", "text"}
        if unknown:
            raise ConfigError(f"/florence takes task and text, not {', '.join(sorted(unknown))}")
        task = query.get("task", "<CAPTION>")
        return {"task": task, "result": self._analyzer.florence(image, task, query.get("text", ""))}

    def _ready(self) -> Answer:
        ready = self._models.ready
        document = {"ready": ready, "models": self._statuses()}
        return Answer.json(document, HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE)

    def _startup(self) -> Answer:
        document = timeline.process.to_dict() | {"models": self._statuses(), "deferred": deferred.report()}
        return Answer.json(document)

    def _metrics(self) -> Answer:
        text = metrics.text(self._models.status(), timeline.process, self.counts)
        return Answer(text.encode(), type="text/plain; version=0.0.4; charset=utf-8")

    def _statuses(self) -> dict[str, Any]:
        return {status.name: status.to_dict() for status in self._models.status()}


def _page() -> Answer:
    page = resources.files("prebake").joinpath("page.html").read_bytes()
    return Answer(page, type="text/html; charset=utf-8")


def serve(models: Started, *, host: str, port: int, begin: Callable[[], None]) -> None:
    """Open the port, call `begin` (which must not block), and answer until SIGTERM or SIGINT.

    Raises ConfigError where the port cannot be opened.
    """
    import waitress

    application = Application(models)
    try:
        server = waitress.create_server(application, host=host, port=port, threads=THREADS, ident=None,
                                        max_request_body_size=MAX_BODY + 1, clear_untrusted_proxy_headers=True)  # fmt: skip
    except OSError as error:
        raise ConfigError(f"cannot open {host}:{port}: {error.strerror}") from error
    signal.signal(signal.SIGTERM, _stop)
    timeline.mark("port open")
    logger.info("http://%s:%d answers; models are loading", host, port)
    begin()
    threading.Thread(target=_watch, args=(models,), name="prebake-watch", daemon=True).start()
    try:
        server.run()
    finally:
        server.close()
    logger.info("stopped")


def _stop(number: int, frame: object) -> None:
    raise SystemExit(0)  # waitress finishes the requests under way and leaves its loop


def _watch(models: Started) -> None:
    """Mark the moment of readiness, or say which models keep the service from it."""
    pause = threading.Event()
    while not models.ready:
        if all(status.state in (State.READY, State.FAILED) for status in models.status()):
            failed = [status.name for status in models.status() if status.required and status.state is State.FAILED]
            if failed:
                logger.error("not ready: %s failed (tried again on the next request)", ", ".join(failed))
                return
        pause.wait(0.005)
    timeline.mark(timeline.READY)
    logger.info("ready after %.2f s", timeline.process.marks[timeline.READY])
