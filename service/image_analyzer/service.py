"""The reference service over HTTP: analyses images, and tells whether and how it started.

The port answers before any framework is imported: models load in the background, and a request that
comes early waits for the models it needs. Requests carry an image file as their body; answers are JSON.

==========  =========================================================================
GET /       one page to try it
GET /livez  200 at once: the process serves
GET /readyz 200 when every required model is loaded (with --lazy: when none has failed), else 503; 503 while it stops
GET /startup  the timeline, the models' tiers, what was deferred, the ratio to a recorded baseline; a page for browsers
GET /metrics  the same for Prometheus
POST /caption /ocr /florence?task=<OD>&text=…  /analyze
==========  =========================================================================
"""

from __future__ import annotations

import io
import json
import logging
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
from image_analyzer.pictures import Picture, Pictures
from prebake import Start, State, Status, report, timeline
from prebake.errors import ConfigError, PrebakeError, UnknownModelError

if TYPE_CHECKING:
    from typing import BinaryIO

    from image_analyzer.idle import WhenIdle

logger = logging.getLogger(__name__)

MAX_BODY = 20_000_000
"""Maximum bytes of an image file; a larger one gets status 413."""
QUESTIONS = 16
"""Maximum active requests for analysis; one more gets status 503 with Retry-After."""
THREADS = QUESTIONS + 4
"""The extra threads answer probes: many requests while models load must not make a liveness probe fail."""
REFUSED = "prebake.refused"
"""Key in the WSGI environment: true if the server dropped the body because others use the memory."""

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
    """The WSGI application (PEP 3333). Thread-safe.

    With `lazy`, models load on first use. `idle` is notified of all work. `/startup` compares with `baseline`.
    """

    def __init__(
        self, models: Started, *, lazy: bool = False, idle: WhenIdle | None = None, baseline: Start | None = None
    ) -> None:
        self.models, self.lazy = models, lazy
        self.work = idle.work if idle else nullcontext
        self._baseline = baseline
        self._analyzer = Analyzer(models)
        self._pictures = Pictures()
        self._draining = False
        self._room = threading.BoundedSemaphore(QUESTIONS)
        self.counts = metrics.Counts()
        self._get: dict[str, Callable[[str], Answer]] = {
            "/": lambda accept: _page(),
            "/livez": lambda accept: Answer.json({"live": True}),
            "/readyz": lambda accept: self._ready(),
            "/startup": self._startup,
            "/metrics": self._metrics,
        }
        self._post: dict[str, Callable[..., Any]] = {
            "/caption": lambda picture: {"caption": self._analyzer.caption(picture.image)},
            "/ocr": lambda picture: {"text": self._analyzer.read(picture.image, picture.size)},
            "/florence": self._florence,
            "/analyze": lambda picture: self._analyzer.analyze(picture.image, picture.size),
        }

    def drain(self) -> None:
        """Report that the service is not ready and refuse new requests for analysis; active ones finish."""
        self._draining = True

    @property
    def ready(self) -> bool:
        """Whether the service is ready: not draining, and every required model is loaded or, if lazy, has not
        failed."""
        return not self._draining and is_ready(self.models, lazy=self.lazy)

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
        return self._question(path, environ) if method == "POST" else self._get[path](environ.get("HTTP_ACCEPT", ""))

    def _question(self, path: str, environ: dict[str, Any]) -> Answer:
        refusal = self._refusal(environ)
        if not refusal and not self._room.acquire(blocking=False):
            refusal = _busy(f"{QUESTIONS} requests are already active")
        if refusal:
            self.counts.add(path, refusal.status)
            return refusal
        try:
            with self.work(), self.counts.time(path) as outcome:
                answer = self._answer_about(path, environ)
                outcome.status = answer.status
        finally:
            self._room.release()
        return answer

    def _refusal(self, environ: dict[str, Any]) -> Answer | None:
        """The answer to a request that is refused without work, or None."""
        if int(environ.get("CONTENT_LENGTH") or 0) > MAX_BODY:
            return Answer.error(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"an image may have at most {MAX_BODY:,} bytes")
        if environ.get(REFUSED):
            return _busy("the service is receiving too many images")
        return _busy("the service is stopping") if self._draining else None

    def _answer_about(self, path: str, environ: dict[str, Any]) -> Answer:
        try:
            parameters = _parameters(path, environ.get("QUERY_STRING", ""))
            with self._pictures.decoded(_body(environ)) as picture:
                document = self._post[path](picture, **parameters)
        except UnknownModelError as error:
            return Answer.error(HTTPStatus.NOT_FOUND, str(error))
        except ConfigError as error:
            return Answer.error(HTTPStatus.BAD_REQUEST, str(error))
        except PrebakeError as error:
            return Answer.error(HTTPStatus.SERVICE_UNAVAILABLE, str(error), **{"Retry-After": "5"})
        except Exception:
            logger.exception("%s failed", path)
            return Answer.error(HTTPStatus.INTERNAL_SERVER_ERROR, f"{path} failed; see the service's log")
        timeline.mark(timeline.FIRST_ANSWER)
        return Answer.json(document)

    def _florence(self, picture: Picture, task: str = "<CAPTION>", text: str = "") -> Any:
        return {"task": task, "result": self._analyzer.florence(picture.image, task, text, picture.size)}

    def _ready(self) -> Answer:
        ready = self.ready
        document = {"ready": ready, **({"draining": True} if self._draining else {}), "models": self._statuses()}
        return Answer.json(document, HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE)

    def _startup(self, accept: str) -> Answer:
        document = report.document(timeline.process, self.models.status(), self._baseline)
        if "text/html" not in accept:
            return Answer.json(document, Vary="Accept")
        from prebake import startup_page  # takes 2 ms, so only here

        return Answer(startup_page(document).encode(), type=HTML, headers=(("Vary", "Accept"),))

    def _metrics(self, accept: str) -> Answer:
        figures = metrics.Figures(self.models.status(), timeline.process, self.counts, ready=self.ready)
        text, kind = metrics.exposition(figures, accept)
        return Answer(text, type=kind)

    def _statuses(self) -> dict[str, Any]:
        return {status.name: status.to_dict() for status in self.models.status()}


def is_ready(models: Started, *, lazy: bool) -> bool:
    """Whether every required model is loaded or, if models load on first use, has not failed."""
    if not lazy:
        return models.ready
    return not any(status.required and status.state is State.FAILED for status in models.status())


def _parameters(path: str, query: str) -> dict[str, str]:
    """The query's parameters; the last value counts. Raises ConfigError for a parameter unknown to the path."""
    found = parse_qs(query, keep_blank_values=True)
    known = ("task", "text") if path == "/florence" else ()
    unknown = sorted(found.keys() - set(known))
    if unknown:
        raise ConfigError(f"{path} takes {' and '.join(known) or 'no parameters'}, not {', '.join(unknown)}")
    return {name: values[-1] for name, values in found.items()}


def _body(environ: dict[str, Any]) -> BinaryIO:
    """The request's body. waitress already has it in memory, so a picture can be decoded without a copy."""
    body = environ["wsgi.input"]
    return body if isinstance(body, io.BytesIO) else io.BytesIO(body.read(int(environ.get("CONTENT_LENGTH") or 0)))


def _busy(message: str) -> Answer:
    return Answer.error(HTTPStatus.SERVICE_UNAVAILABLE, message, **{"Retry-After": "1"})


def _page() -> Answer:
    page = resources.files("image_analyzer").joinpath("page.html").read_bytes()
    return Answer(page, type=HTML)
