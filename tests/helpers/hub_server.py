"""A Hugging Face hub of one model repository on the loopback interface, and a plain file server.

`HubServer` speaks what huggingface_hub 0.34 to 2.4 calls to read a model, as huggingface.co answers it:

- `GET /api/models/REPO[/revision/REV]` (with `?blobs=true`: sizes and hashes) and
  `GET /api/models/REPO/tree/REV[/FOLDER]`;
- `HEAD` and `GET /REPO/resolve/REV/FILE`: `ETag`, `X-Repo-Commit`; large files answer 302 to another origin
  (the CDN) with `X-Linked-Size` and `X-Linked-Etag`; `Range` is honoured;
- `X-Error-Code` of RepoNotFound, RevisionNotFound, EntryNotFound and GatedRepo, with the status that goes with it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "acme/tiny"


@dataclass
class Request:
    """One request, as a handler sees it and as `requests` keeps it."""

    method: str
    path: str
    query: dict[str, list[str]]
    authorization: str | None
    range: str | None = None


@dataclass
class Answer:
    """What to send back."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class Server:
    """A threaded loopback server around one function, `answer`, which may be changed while it runs; a context manager
    that stops itself. Port 0 is any free one."""

    def __init__(self, answer: Callable[[Request], Answer], *, port: int = 0) -> None:
        self.requests: list[Request] = []
        self.answer = answer
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                request = Request(
                    method=self.command,
                    path=unquote(parts.path),
                    query=parse_qs(parts.query),
                    authorization=self.headers.get("Authorization"),
                    range=self.headers.get("Range"),
                )
                server.requests.append(request)
                found = _ranged(server.answer(request), request.range)
                self.send_response(found.status)
                for name, value in {"Content-Length": str(len(found.body)), **found.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(found.body)
                if "X-Cut" in found.headers:
                    self.close_connection = True

            def do_HEAD(self) -> None:
                self.do_GET()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> Any:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class FileServer(Server):
    """Serves `files` (path → bytes); `script` holds answers to be given first, one for each request."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = dict(files)
        self.script: list[Answer] = []
        super().__init__(self._answer)

    def _answer(self, request: Request) -> Answer:
        if self.script:
            return self.script.pop(0)
        body = self.files.get(request.path.lstrip("/"))
        return Answer(status=404) if body is None else Answer(body=body)


class HubServer(Server):
    """A hub with one model repository. Attributes may be changed while it runs.

    `token`: what a private or gated repository asks for. `served` replaces the bytes that a file is sent with,
    `status` the answer to everything.
    """

    def __init__(
        self,
        files: Mapping[str, bytes],
        *,
        repo: str = REPO,
        commit: str = COMMIT,
        branches: tuple[str, ...] = ("main",),
        card: Mapping[str, Any] | None = None,
        gated: bool = False,
        private: bool = False,
        token: str | None = None,
    ) -> None:
        self.files = dict(files)
        self.repo, self.commit, self.branches = repo, commit, branches
        self.card, self.gated, self.private, self.token = card, gated, private, token
        self.served: dict[str, bytes] = {}
        self.status: int | None = None
        # Another origin, as the CDN is: the token must not follow there.
        self.cdn = Server(self._answer_cdn)
        super().__init__(self._answer)

    def __enter__(self) -> HubServer:
        self.cdn.__enter__()
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self.cdn.__exit__(kind, error, trace)

    @property
    def uri(self) -> str:
        return f"hf:{self.repo}"

    def _answer(self, request: Request) -> Answer:
        if self.status is not None:
            return Answer(status=self.status)
        has_access = request.authorization == f"Bearer {self.token}" if self.token else True
        path = request.path
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/(.+))?", path) or re.fullmatch(
            r"/([^/]+/[^/]+)/(resolve)/(refs/pr/\d+|[^/]+)/(.+)", path
        )
        if found is None:
            return Answer(status=404)
        if found[1] != self.repo or (self.private and not has_access):
            # Without a token the hub does not say whether a repository exists.
            return _error(404 if request.authorization else 401, "RepoNotFound", "Repository not found")
        revision, _, folder = (
            (found[3] or "main").partition("/") if found[2] == "tree" else (found[3] or "main", "", "")
        )
        if revision != self.commit and revision not in self.branches:
            return _error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if found[2] == "tree":
            names = [name for name in sorted(self.files) if not folder or name.startswith(f"{folder}/")]
            if not names:
                return _error(404, "EntryNotFound", f"{folder} does not exist on {revision}")
            return _json([self._tree_entry(name) for name in names])
        if found[2] != "resolve":
            return _json(self._info(blobs=request.query.get("blobs", ["false"])[0].lower() == "true"))
        if self.gated and not has_access:
            status = 403 if request.authorization else 401
            return _error(status, "GatedRepo", f"Access to model {self.repo} is restricted.")
        return self._resolve(found[4])

    def _resolve(self, name: str) -> Answer:
        headers = {"X-Repo-Commit": self.commit, "Accept-Ranges": "bytes"}
        if name not in self.files:
            answer = _error(404, "EntryNotFound", "Entry not found")
            answer.headers.update(headers)
            return answer
        body = self.files[name]
        if not is_large(name):
            headers["ETag"] = f'"{_git_hash(body)}"'
            return Answer(headers=headers, body=self.served.get(name, body))
        sha256 = _sha256(body)
        headers |= {
            "X-Linked-Size": str(len(body)),
            "X-Linked-Etag": f'"{sha256}"',
            "Location": f"{self.cdn.url}/{sha256}/{quote(name)}",
        }
        return Answer(status=302, headers=headers)

    def _answer_cdn(self, request: Request) -> Answer:
        name = request.path.split("/", 2)[2]
        return Answer(headers={"Accept-Ranges": "bytes"}, body=self.served.get(name, self.files[name]))

    def _info(self, *, blobs: bool) -> dict[str, Any]:
        siblings = []
        for name in sorted(self.files):
            entry = self._tree_entry(name)
            sibling: dict[str, Any] = {"rfilename": name}
            if blobs:
                sibling |= {"size": entry["size"], "blobId": entry["oid"]}
                if "lfs" in entry:
                    lfs = entry["lfs"]
                    sibling["lfs"] = {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": lfs["pointerSize"]}
            siblings.append(sibling)
        card = {"cardData": dict(self.card)} if self.card is not None else {}
        gated = "manual" if self.gated else False
        return {"id": self.repo, "modelId": self.repo, "sha": self.commit, "private": self.private, "gated": gated,
                "tags": [], "downloads": 0, "siblings": siblings, **card}  # fmt: skip

    def _tree_entry(self, name: str) -> dict[str, Any]:
        body = self.files[name]
        entry = {"type": "file", "path": name, "size": len(body), "oid": _git_hash(body)}
        if is_large(name):
            sha256 = _sha256(body)
            entry["lfs"] = {"oid": sha256, "size": len(body), "pointerSize": 134}
        return entry


def is_large(name: str) -> bool:
    """Whether the hub keeps a file of this name in LFS."""
    return name.endswith((".safetensors", ".bin", ".h5", ".msgpack", ".onnx", ".gguf", ".model", ".pt"))


# Each of many requests asks for the hash of the same large file.
@lru_cache(maxsize=64)
def _git_hash(body: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


@lru_cache(maxsize=64)
def _sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def _json(document: Any) -> Answer:
    return Answer(headers={"Content-Type": "application/json"}, body=json.dumps(document).encode())


def _error(status: int, code: str, message: str) -> Answer:
    answer = _json({"error": message})
    answer.status = status
    answer.headers |= {"X-Error-Code": code, "X-Error-Message": message}
    return answer


def _ranged(answer: Answer, wanted: str | None) -> Answer:
    found = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted or "")
    if not found or answer.status != 200:
        return answer
    start, stop = int(found[1]), int(found[2]) + 1 if found[2] else len(answer.body)
    headers = {**answer.headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(answer.body)}"}
    return Answer(status=206, headers=headers, body=answer.body[start:stop])
