"""A stand-in for the hub that serves folders as repositories, as far as `huggingface_hub.snapshot_download` asks.

`python hub_files.py FOLDER PORT`: each folder in FOLDER is the repository `acme/NAME`. Files go out with sendfile.
"""

from __future__ import annotations

import json
import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OWNER = "acme"


class Handler(BaseHTTPRequestHandler):
    """`/api/models/REPO`, with `/revision/REV` or `/tree/REV`; `/REPO/resolve/REV/FILE`, ranges included."""

    protocol_version = "HTTP/1.1"
    root = Path()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if found := re.fullmatch(rf"/api/models/{OWNER}/([^/]+)(?:/(revision|tree)/[^/]+)?", path):
            folder, name = self.root / found[1], f"{OWNER}/{found[1]}"
            files = {str(file.relative_to(folder)): file for file in sorted(folder.rglob("*")) if file.is_file()}
            if found[2] == "tree":
                entries = [(path, file.stat().st_size) for path, file in files.items()]
                self._send([{"type": "file", "path": path, "size": size, "oid": "0" * 40} for path, size in entries])
            else:
                self._send({"id": name, "modelId": name, "sha": COMMIT, "private": False, "gated": False, "tags": [],
                            "downloads": 0, "siblings": [{"rfilename": path} for path in files]})  # fmt: skip
        elif (found := re.fullmatch(rf"/{OWNER}/([^/]+)/resolve/[^/]+/(.+)", path)) and ".." not in path:
            self._file(self.root / found[1] / found[2])
        else:
            self.send_error(404)

    def do_HEAD(self) -> None:
        self.do_GET()

    def _send(self, document: object) -> None:
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _file(self, file: Path) -> None:
        if not file.is_file():
            self.send_error(404)
            return
        size = file.stat().st_size
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        start = int(wanted[1]) if wanted else 0
        stop = int(wanted[2]) + 1 if wanted and wanted[2] else size
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        for name, value in {"Content-Length": str(stop - start), "Accept-Ranges": "bytes", "X-Repo-Commit": COMMIT,
                            "ETag": f'"{size}-{file.stat().st_mtime_ns}"'}.items():  # fmt: skip
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.flush()
            with file.open("rb") as opened:
                self.connection.sendfile(opened, start, stop - start)

    def log_message(self, *words: object) -> None:
        pass


def main() -> None:
    Handler.root = Path(sys.argv[1])
    ThreadingHTTPServer(("", int(sys.argv[2])), Handler).serve_forever()


if __name__ == "__main__":
    main()
