"""The same service for an ASGI server: `uvicorn helpers.scanned_app:app --workers 2`."""

from __future__ import annotations

import json
from typing import Any

from helpers.scanned_service import load

model: Any = load("acme/tiny", "AutoModelForMaskedLM", None)


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return
    body = json.dumps({"parameters": model.num_parameters()}).encode()
    status = 200 if scope["path"] == "/health" else 404
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": body})
