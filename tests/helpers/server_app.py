"""What gunicorn and uvicorn serve in tests: every answer tells which worker gave it and where its models come from."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import prebake
from prebake.tiers.loader import LoadedModel

if TYPE_CHECKING:
    from torch import nn

RELEASE = "TEST_RELEASE"
"""Names the file whose appearance ends the load of `held`."""

building = threading.Event()


def held() -> nn.Module:
    """A network whose constructor, in the server, waits for the test."""
    from torch import nn

    building.set()
    release, deadline = os.environ.get(RELEASE), time.monotonic() + 120
    while release and not Path(release).exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return nn.Linear(4, 4)


def answer(loaded: LoadedModel) -> dict[str, Any]:
    """A sentence's embedding, and a digest of all weights: every page of the file is read."""
    import torch

    with torch.inference_mode():
        words = loaded.processor("a cat sits on the mat", return_tensors="pt")
        values = loaded.model(**words).last_hidden_state.mean(1).flatten().tolist()
    digest = hashlib.sha256()
    for name, tensor in sorted(loaded.model.state_dict().items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return {"values": values, "weights": digest.hexdigest()}


class Application:
    """`/status` tells, `/answer` computes, `/both` waits for the models `held` and `sentences`, then computes."""

    def __init__(self) -> None:
        self.models = prebake.Models(allow=[__name__])
        self.waiting: list[str] = []
        self.loaded_by: int | None = None

    def status(self) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "loaded by": self.loaded_by,
            "states": {status.name: [status.state.value, status.tier] for status in self.models.status()},
            "loads": sorted(str(span.model) for span in self.models.timeline.spans if span.name == "load"),
            "waiting": len(self.waiting),
        }

    def wsgi(self, environ: Mapping[str, Any], start: Callable[[str, list[tuple[str, str]]], Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        answered: dict[str, Any] = {}
        if path == "/both":
            self.waiting.append(path)
            _ = self.models["held"]
        if path != "/status":
            answered = answer(self.models["sentences"])
        start("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(self.status() | answered).encode()]

    async def asgi(
        self, scope: Mapping[str, Any], receive: object, send: Callable[[dict[str, Any]], Awaitable[None]]
    ) -> None:
        path = scope["path"]
        answered: dict[str, Any] = {}
        if path == "/both":
            self.waiting.append(path)
            await self.models.get("held")
        if path != "/status":
            answered = await asyncio.to_thread(answer, await self.models.get("sentences"))
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(self.status() | answered).encode()})


def preloaded() -> Any:
    """The parent loads `sentences`, does not compute, and forks while it builds `held`, all imports done."""
    application = Application()
    _ = application.models["sentences"]
    application.loaded_by = os.getpid()
    application.models.start()
    assert building.wait(60)
    return application.wsgi


def wsgi() -> Any:
    return Application().wsgi


def asgi() -> Any:
    return Application().asgi
