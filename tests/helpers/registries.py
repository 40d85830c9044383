"""Registries for tests, of Debian's package docker-registry: one that asks for a password, one whose disk is small."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

# bcrypt of "password"; the tests never send it
_PASSWORDS = "user:$2b$04$ur2eXVYStChn6NgWiR2CbeesXDELQ7gpLGWpmZuDVWrO.7mvuuczC\n"


@contextmanager
def registry(folder: Path, storage: Path, *, password: bool = False) -> Iterator[str]:
    """A registry that keeps its blobs in `storage`; yields its address. Skips the test where there is no program."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("docker-registry is not installed")
    address = f"127.0.0.1:{free_port()}"
    text = f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {storage}}}}}\nhttp: {{addr: '{address}'}}\n"
    if password:
        (folder / "htpasswd").write_text(_PASSWORDS)
        text += f"auth: {{htpasswd: {{realm: test, path: {folder / 'htpasswd'}}}}}\n"
    (folder / "registry.yml").write_text(text)
    with (folder / "registry.log").open("wb") as log:
        process = subprocess.Popen([program, "serve", str(folder / "registry.yml")], stdout=log, stderr=log)
    try:
        _wait(address, process)
        yield address
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    """A port that nobody listens on."""
    with closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _wait(address: str, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        try:
            urllib.request.urlopen(f"http://{address}/v2/", timeout=10).close()
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.05)
        else:
            return
    pytest.fail(f"docker-registry ended with {process.returncode}")
