"""Middleware answers three paths of an application of one's own, and passes everything else on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

import prebake
from helpers.runtime_fakes import manifest_of, write_manifest
from prebake.adopt import redirect
from prebake.adopt.loads import Load, record
from prebake.telemetry import timeline

Asgi, Wsgi = prebake.middleware.Asgi, prebake.middleware.Wsgi


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, use: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two baked models, one of them loaded; no mark yet."""
    for name in ("caption", "ocr"):
        write_manifest(tmp_path / "models", manifest_of(name))
    use(tmp_path / "models")
    monkeypatch.setattr(timeline.process, "marks", {})
    record(Load(library="transformers", function="f", outcome="mapped", model="caption", seconds=0.5))


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await send({"type": "lifespan.startup.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"own " + scope["path"].encode()})


def ask(application: Any, path: str, method: str = "GET", kind: str = "http") -> list[Any]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(application({"type": kind, "method": method, "path": path}, None, send))
    return sent


def test_the_report_of_a_start() -> None:
    start, body = ask(Asgi(app), "/startup")
    document = json.loads(body["body"])
    assert start["status"] == 200
    assert dict(start["headers"]) == {
        b"content-type": b"application/json", b"content-length": str(len(body["body"])).encode()
    }  # fmt: skip
    assert document["models"] == {"caption": {"outcome": "mapped", "seconds": 0.5}, "ocr": None}
    assert document["counts"] == [{"library": "transformers", "outcome": "mapped", "loads": 1}]
    assert [load["model"] for load in document["loads"]] == ["caption"]
    assert {"spans", "marks", "memory", "deferred", "pid", "command"} <= set(document)


def test_readiness_is_refused_while_something_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    start, body = ask(Asgi(app), "/readyz")
    assert (start["status"], json.loads(body["body"])["ready"]) == (200, True)
    monkeypatch.setitem(redirect.under_way, object(), "ocr")
    start, body = ask(Asgi(app), "/readyz")
    assert start["status"] == 503
    assert json.loads(body["body"]) == {
        "ready": False, "loading": ["ocr"], "models": {"caption": {"outcome": "mapped", "seconds": 0.5}, "ocr": None}
    }  # fmt: skip


def test_metrics_are_those_of_prometheus() -> None:
    ask(Asgi(app), "/", kind="lifespan")
    start, body = ask(Asgi(app), "/metrics")
    assert dict(start["headers"])[b"content-type"] == b"text/plain; version=0.0.4; charset=utf-8"
    lines = [line for line in body["body"].decode().splitlines() if not line.startswith("#")]
    assert lines[:3] == [
        'prebake_loads_total{library="transformers",outcome="mapped"} 1',
        'prebake_load_seconds{model="caption",outcome="mapped"} 0.5',
        "prebake_ready 1",
    ]
    assert lines[3].startswith("prebake_ready_seconds ") and len(lines) == 4


def test_everything_else_is_the_application_s() -> None:
    assert ask(Asgi(app), "/own")[1]["body"] == b"own /own"
    assert ask(Asgi(app), "/metrics", "POST")[1]["body"] == b"own /metrics"
    moved = Asgi(app, metrics="/prebake/metrics", startup=None)
    assert ask(moved, "/metrics")[1]["body"] == b"own /metrics"
    assert ask(moved, "/startup")[1]["body"] == b"own /startup"
    assert b"prebake_ready" in ask(moved, "/prebake/metrics")[1]["body"]


def test_head_has_no_body() -> None:
    start, body = ask(Asgi(app), "/readyz", "HEAD")
    assert (start["status"], body["body"]) == (200, b"")
    assert int(dict(start["headers"])[b"content-length"]) > 0


def test_the_end_of_the_start_up_is_marked() -> None:
    assert ask(Asgi(app), "/", kind="lifespan") == [{"type": "lifespan.startup.complete"}]
    assert list(timeline.process.marks) == ["ready"]


def test_wsgi() -> None:
    def own(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        return [b"own"]

    def get(path: str, method: str = "GET") -> tuple[str, dict[str, str], bytes]:
        told: list[Any] = []
        body = Wsgi(own)({"REQUEST_METHOD": method, "PATH_INFO": path}, lambda *start: told.extend(start))
        return told[0], dict(told[1]), b"".join(body)

    assert get("/") == ("200 OK", {}, b"own")
    status, headers, body = get("/readyz")
    assert (status, headers["Content-Type"]) == ("200 OK", "application/json")
    assert json.loads(body)["ready"] is True
    assert get("/readyz", "HEAD")[2] == b""
    assert list(timeline.process.marks) == ["ready"]
