"""An S3 server on the loopback interface, in a process of its own: moto's."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

KEY, SECRET = "AKIATESTTESTTEST", "s3cr3t/of+the+tests"
BUCKET = "weights"


@contextmanager
def s3_server() -> Iterator[str]:
    """The server's address; it ends with the block."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            _until_open(port, process)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def _until_open(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None:
            pytest.fail(f"moto's server ended with exit code {process.returncode}")
        time.sleep(0.1)
    pytest.fail("moto's server did not open its port")


def use(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Set the variables by which S3's client finds server and credentials."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def put(objects: Mapping[str, bytes]) -> None:
    """Write objects into the bucket, which is created if necessary."""
    import s3fs

    store: Any = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
    if not store.exists(BUCKET):
        store.mkdir(BUCKET)
    for name, body in objects.items():
        store.pipe_file(f"{BUCKET}/{name}", body)
