"""The report of a service that does not know Prebake; `PREBAKE_REPORT` says where it goes.

Every process of a service that imports a framework reports, and they do not collide:

- a file: the service's first process writes `FILE`, each other one `FILE.PID`, after every load and at its end. A file
  is replaced whole.
- `unix:PATH` and `127.0.0.1:PORT` answer GET `/startup`, `/readyz` and `/metrics` for one process: the first one that
  binds the address. The others wait in a thread, and one of them takes over when it ends. Each answer names its `pid`.

Without the variable, nothing is imported and no thread is started.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import socket
import socketserver
import stat
import tempfile
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from prebake.adopt import ENV_REPORT
from prebake.adopt.address import Address
from prebake.adopt.state import ANSWERS, startup
from prebake.documents.messages import reason
from prebake.errors import ConfigError

logger = logging.getLogger(__name__)

AGAIN = 5.0
"""Seconds between two attempts to bind the address that another process of the service has."""


class Reporter:
    """Reports for this process. `loaded()` follows every load."""

    def __init__(self, address: Address, first: bool) -> None:
        self._file = None if address.file is None else Path(address.file if first else f"{address.file}.{os.getpid()}")
        self._pid = os.getpid()
        self._lock = threading.Lock()
        if self._file is not None:
            atexit.register(self.loaded)
        else:
            threading.Thread(target=_serve, args=(address,), name="prebake-report", daemon=True).start()

    def loaded(self) -> None:
        """Write the file anew; a failure is logged, not raised."""
        if self._file is None or os.getpid() != self._pid:
            return
        with self._lock:
            try:
                _replace(self._file, json.dumps(startup(), default=str, indent=1) + "\n")
            except OSError as error:
                logger.warning("%s: the report is not written: %s", self._file, reason(error))


def begin(first: bool) -> Reporter | None:
    """Report as `PREBAKE_REPORT` says; `first` is whether this is the service's first process that asks."""
    given = os.environ.get(ENV_REPORT)
    if not given:
        return None
    try:
        return Reporter(Address.parse(given, ENV_REPORT), first)
    except (ConfigError, RuntimeError) as error:  # an address that `prebake run` has not checked; no more threads
        logger.warning("no report: %s", error)
        return None


def _replace(file: Path, text: str) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as target:
            target.write(text)
        Path(name).chmod(0o644)
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


class _Answers(BaseHTTPRequestHandler):
    """Answers one connection."""

    timeout = 10
    server_version, sys_version = "prebake", ""

    def do_GET(self) -> None:
        answer = ANSWERS.get(self.path.partition("?")[0])
        if answer is None:
            return self.send_error(404, f"there is no {self.path[:80]} (there are: {', '.join(ANSWERS)})")
        status, kind, body = answer()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        return None

    def address_string(self) -> str:
        return "local"  # a Unix socket's peer has no address

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        logger.debug(format, *args)


class _Tcp(socketserver.TCPServer):
    allow_reuse_address = True


class _Unix(socketserver.UnixStreamServer):
    pass


def _serve(address: Address) -> None:
    """Answer at the address for as long as this process lives, once no other process of the service has it."""
    waiting = threading.Event()
    said = False
    while True:
        try:
            server = _bound(address)
        except OSError as error:
            if not said:
                logger.info("%s: not this process's: %s", address, reason(error))
            said = True
            waiting.wait(AGAIN)
            continue
        with server:
            server.serve_forever()


def _bound(address: Address) -> socketserver.BaseServer:
    if address.port is not None:
        return _Tcp((address.host, address.port), _Answers)
    path = str(address.socket)
    _remove_left(path)
    server = _Unix(path, _Answers)
    os.chmod(path, 0o600)  # noqa: PTH101
    return server


def _remove_left(path: str) -> None:
    """Remove a socket that a process left when it ended: nobody answers there."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return
    except OSError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink(missing_ok=True)
