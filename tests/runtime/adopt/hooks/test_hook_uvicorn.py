"""A service behind uvicorn, with no line about snapshots: dumped after its lifespan, restored before its port."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from helpers.snapshots import Served

APP = """
    import asyncio, contextvars, json, os, threading
    import prebake

    state = {"ticks": 0}

    async def tick():
        while True:
            await asyncio.sleep(0.01)
            state["ticks"] += 1

    async def lifespan(receive, send):
        await receive()
        state["loaded"] = await asyncio.to_thread(lambda: sum(range(1000)))
        state["task"] = asyncio.create_task(tick())
        await send({"type": "lifespan.startup.complete"})
        await receive()
        state["task"].cancel()
        print("lifespan ended", flush=True)
        await send({"type": "lifespan.shutdown.complete"})

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            return await lifespan(receive, send)
        answer = {"loaded": state["loaded"], "ticks": state["ticks"], "greeting": os.environ.get("GREETING"),
                  "thread": await asyncio.to_thread(lambda: threading.current_thread() is not threading.main_thread()),
                  "pid": os.getpid()}
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": json.dumps(answer).encode()})

    app = prebake.middleware.Asgi(app)
"""


@pytest.fixture
def served(tmp_path: Path, native: Path) -> Served:
    service = Served(tmp_path, native)
    service.write(APP)
    return service


def dumped(served: Served, *options: str, **environment: str) -> str:
    done = served.dump(*options, **environment)
    assert done.returncode == 0, done.stderr
    return done.stderr


def error_of(done: subprocess.CompletedProcess[str]) -> str:
    """The only message of a dump that was refused."""
    assert done.returncode == 1, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("prebake: error: ")]
    assert len(lines) == 1 and "Traceback" not in done.stderr, done.stderr
    return lines[0].removeprefix("prebake: error: no snapshot: ")


def test_it_answers_with_the_state_of_its_lifespan(served: Served) -> None:
    entry = dumped(served).rstrip().splitlines()[-1]
    expected = json.dumps([str(served.native / "prebake-restore"), str(served.snapshot), *served.command])
    assert entry == f"snapshot: entry point: {expected}"
    with served.restored(GREETING="hello") as process:
        first = served.ask("/")
        assert (first["loaded"], first["greeting"], first["thread"]) == (499500, "hello", True)
        assert first["pid"] != process.pid  # its supervisor
        while served.ask("/")["ticks"] == first["ticks"]:
            pass
        told = served.ask("/startup")
        assert (told["snapshot"]["tier"], told["snapshot"]["reason"]) == ("snapshot", None)
        assert "ready" in told["marks"]
        process.terminate()
        assert process.wait(30) in (0, 128 + signal.SIGTERM)  # uvicorn sends itself the signal again
    assert "lifespan ended" in served.log
    assert served.log.count("Started server process") == 0


def test_each_restore_is_a_process_of_its_own(served: Served) -> None:
    dumped(served)
    pids = set()
    for _ in range(3):
        with served.restored():
            pids.add(served.ask("/")["pid"])
    assert len(pids) == 3


def test_a_script_that_calls_uvicorn(tmp_path: Path, native: Path) -> None:
    served = Served(tmp_path, native, ("python", "main.py"))
    served.write(APP)
    served.write(f"import uvicorn\nfrom app import app\nuvicorn.run(app, port={served.port})\n", "main.py")
    dumped(served)
    with served.restored():
        assert served.ask("/startup")["snapshot"]["tier"] == "snapshot"


def test_other_arguments_and_variables_of_uvicorn_start_the_ordinary_way(served: Served) -> None:
    dumped(served)
    given = " ".join(served.words[1:])
    served.words = (*served.words, "--no-access-log")
    with served.restored():
        reason = f"the arguments are '{given} --no-access-log', and the snapshot was taken with '{given}'"
        assert _ordinary(served) == reason
    served.words = served.words[:-1]
    with served.restored(UVICORN_ACCESS_LOG="0"):
        assert _ordinary(served) == "UVICORN_ACCESS_LOG is set, which it was not for the snapshot"


def _ordinary(served: Served) -> str:
    told = served.ask("/startup")
    assert told["snapshot"]["tier"] == "ordinary"
    reason: str = told["snapshot"]["reason"]
    assert f"prebake: the snapshot is not used: {reason}\n" in served.log
    return reason


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workers", "2"], "uvicorn --workers 2 starts other processes, and a snapshot holds one: leave it out, and "
         "start more containers, which share the snapshot's memory"),
        (["--reload"], "uvicorn --reload starts other processes, and a snapshot holds one: leave it out, and start "
         "more containers, which share the snapshot's memory"),
        (["--fd", "0"], "uvicorn was given a socket that is open already: let it open its own, by --host and --port, "
         "or --uds"),
    ],
    ids=["workers", "reload", "fd"],
)  # fmt: skip
def test_what_uvicorn_can_do_and_a_snapshot_cannot_hold(served: Served, words: list[str], message: str) -> None:
    served.words = (*served.words, *words)
    assert error_of(served.dump()) == message
    assert not (served.snapshot / "table").exists()


def test_another_loop_is_refused(served: Served) -> None:
    pytest.importorskip("uvloop")
    served.words = (*served.words, "--loop", "uvloop")
    assert error_of(served.dump()) == (
        "the event loop, uvloop.Loop, can't be closed and opened again: start uvicorn with --loop asyncio, or by "
        "uvicorn.run"
    )


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl makes the certificate")
def test_a_key_gets_into_no_snapshot(served: Served, tmp_path: Path) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2",
         "-keyout", "key.pem", "-out", "certificate.pem"],
        cwd=tmp_path, capture_output=True, check=True,
    )  # fmt: skip
    served.words = (*served.words, "--ssl-keyfile", "key.pem", "--ssl-certfile", "certificate.pem")
    assert error_of(served.dump()) == (
        "the key of uvicorn's certificate would be in the snapshot: end TLS before the container"
    )
    assert not (served.snapshot / "memory.img").exists()


def test_what_the_lifespan_left_open_is_named(served: Served) -> None:
    served.write("""
        import socket
        async def app(scope, receive, send):
            await receive()
            app.kept = socket.socket()
            await send({"type": "lifespan.startup.complete"})
            await receive()
    """)
    message = error_of(served.dump())
    assert re.fullmatch(r"files, pipes or sockets are open: \d+ \(socket:\[\d+\]\); close them in a function that "
                        r"prebake\.snapshot\.before_snapshot registers", message)  # fmt: skip


def test_an_application_that_fails_fails_the_build(served: Served) -> None:
    served.write("raise ValueError('no such model')\n")
    done = served.dump()
    assert done.returncode == 1
    assert "ValueError: no such model" in done.stderr
    served.write("""
        async def app(scope, receive, send):
            await receive()
            await send({"type": "lifespan.startup.failed", "message": "no such model"})
    """)
    done = served.dump()
    assert done.returncode == 3
    assert "no such model" in done.stderr


def test_without_a_dump_nothing_changes(served: Served) -> None:
    with (served.folder / "log").open("wb") as log, subprocess.Popen(
        served.command, cwd=served.folder, env=served.variables({}), stdout=log, stderr=log
    ) as process:  # fmt: skip
        try:
            served.until_open(process)
            assert "snapshot" not in served.ask("/startup")
        finally:
            os.kill(process.pid, signal.SIGKILL)
