"""`/startup`, `/readyz` and `/metrics` in an application of one's own, in three lines::

    import prebake

    app.add_middleware(prebake.middleware.Asgi)            # FastAPI, Starlette
    app = prebake.middleware.Asgi(app)                     # any ASGI application
    app.wsgi_app = prebake.middleware.Wsgi(app.wsgi_app)   # Flask; app = prebake.middleware.Wsgi(app) for others

The middleware answers these paths itself and passes everything else on. Another path, or None to leave one out, is an
argument: `Asgi(app, metrics="/prebake/metrics")`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from http import HTTPStatus
from typing import Any

from prebake.adopt.state import Answer, answer_metrics, answer_ready, answer_startup
from prebake.telemetry import timeline

__all__ = ["Asgi", "Wsgi"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]
StartResponse = Callable[..., Any]
WsgiApp = Callable[[dict[str, Any], StartResponse], Iterable[bytes]]

_METHODS = ("GET", "HEAD")


class _Paths:
    def __init__(self, startup: str | None, readyz: str | None, metrics: str | None) -> None:
        named = ((startup, answer_startup), (readyz, answer_ready), (metrics, answer_metrics))
        self.answers = {path: answer for path, answer in named if path is not None}

    def find(self, method: str, path: str) -> Callable[[], Answer] | None:
        return self.answers.get(path) if method in _METHODS else None


class Asgi:
    """Middleware of an ASGI application. The application is ready (`timeline.READY`) when its start-up is complete."""

    def __init__(
        self,
        app: AsgiApp,
        *,
        startup: str | None = "/startup",
        readyz: str | None = "/readyz",
        metrics: str | None = "/metrics",
    ) -> None:
        self._app = app
        self._paths = _Paths(startup, readyz, metrics)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, _marking(send))
        found = self._paths.find(scope["method"], scope["path"]) if scope["type"] == "http" else None
        if found is None:
            return await self._app(scope, receive, send)
        status, kind, body = found()
        headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
        return None


def _marking(send: Send) -> Send:
    async def marking(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "lifespan.startup.complete":
            timeline.mark(timeline.READY)
        await send(message)

    return marking


class Wsgi:
    """Middleware of a WSGI application. WSGI does not say when an application is ready: at the first request, here."""

    def __init__(
        self,
        app: WsgiApp,
        *,
        startup: str | None = "/startup",
        readyz: str | None = "/readyz",
        metrics: str | None = "/metrics",
    ) -> None:
        self._app = app
        self._paths = _Paths(startup, readyz, metrics)

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        timeline.mark(timeline.READY)
        method = environ.get("REQUEST_METHOD", "GET")
        found = self._paths.find(method, environ.get("PATH_INFO", ""))
        if found is None:
            return self._app(environ, start_response)
        status, kind, body = found()
        start_response(
            f"{status} {HTTPStatus(status).phrase}", [("Content-Type", kind), ("Content-Length", str(len(body)))]
        )
        return [b"" if method == "HEAD" else body]
