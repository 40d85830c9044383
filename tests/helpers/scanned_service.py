"""A service as its users write it, with no word about Prebake: `python -m helpers.scanned_service PORT [OPTION …]`.

It loads a tiny BERT by its id on the hub, and answers `/health` and, with the sum of the model's output, `POST /sum`.
"""

from __future__ import annotations

import argparse
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def load(name: str, class_: str, revision: str | None) -> Any:
    import transformers

    return getattr(transformers, class_).from_pretrained(name, revision=revision)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--model", default="acme/tiny")
    parser.add_argument("--class", dest="class_", default="AutoModelForMaskedLM")
    parser.add_argument("--revision", action="append", help="loads the model once for each")
    parser.add_argument("--lazy", action="store_true", help="load with the first request")
    parser.add_argument("--fail", type=int, help="exit code after the load")
    parser.add_argument("--job", action="store_true", help="load, print, and end")
    options = parser.parse_args()
    models: list[Any] = []

    def loaded() -> Any:
        if not models:
            models.extend(load(options.model, options.class_, revision) for revision in options.revision or [None])
        return models[0]

    if not options.lazy:
        loaded()
    if options.fail is not None:
        sys.exit(options.fail)
    if options.job:
        print("done")
        return 0
    serve(options.port, loaded)
    return 0


def serve(port: int, loaded: Any) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(200 if self.path == "/health" else 404, {"up": True})

        def do_POST(self) -> None:
            import torch

            ids = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["ids"]
            with torch.no_grad():
                self.answer(200, {"sum": float(loaded()(input_ids=torch.tensor([ids])).logits.sum())})

        def answer(self, status: int, document: Any) -> None:
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    sys.exit(main())
