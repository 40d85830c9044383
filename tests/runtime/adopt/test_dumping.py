"""What the snapshot of a foreign service depends on, and the services of which none can be taken."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from helpers.snapshots import Served

ASKING = """
    import json, os
    import settings
    from prebake.telemetry import restored

    NAMES = [os.environ.get("BY_GET"), os.getenv("BY_GETENV", "-"), "BY_IN" in os.environ, os.environ.get("HOME")]
    os.environ["OWN"] = "set by the program"
    os.environ["OWN"]

    async def app(scope, receive, send):
        if scope["type"] != "http":
            return await send({"type": "lifespan.startup.complete"})
        answer = [restored.document(), os.environ.get("LATER"), os.environ.get("OWN"), type(os.environ).__name__]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": json.dumps(answer).encode()})
"""


@pytest.fixture
def asking(tmp_path: Path, native: Path) -> Served:
    served = Served(tmp_path, native)
    served.write(ASKING)
    served.write("import os\nclass Settings: name = os.environ.get('BY_LIBRARY')\n", "settings.py")
    return served


def how(served: Served, **environment: str) -> str | None:
    """Why the service was not restored, or None."""
    with served.restored(**environment):
        answer = served.ask("/")
    reason: str | None = answer[0]["reason"]
    return reason


def test_a_variable_that_the_application_read_refuses_a_container_that_sets_it(asking: Served) -> None:
    done = asking.dump()
    assert done.returncode == 0, done.stderr
    assert how(asking, LATER="1", HOME="/elsewhere") is None
    for name in ("BY_GET", "BY_GETENV", "BY_IN", "BY_LIBRARY"):
        assert how(asking, **{name: "1"}) == f"{name} is set, which it was not for the snapshot"


def test_variables_are_those_of_the_container_afterwards(asking: Served) -> None:
    assert asking.dump().returncode == 0
    with asking.restored(LATER="now"):
        assert asking.ask("/")[1:] == ["now", "set by the program", "_Environ"]


def test_a_variable_that_is_set_and_withheld_is_named(asking: Served) -> None:
    done = asking.dump(BY_GET="1", UNASKED="1")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"prebake: error: no snapshot: the application asked for BY_GET ({asking.folder / 'app.py'}:6), which is "
        "set and was withheld: `--variable BY_GET` keeps it, with its value, in the snapshot; ask for secrets in a "
        "function that prebake.snapshot.after_restore registers, or unset it here"
    )
    done = asking.dump("--variable", "BY_GET", BY_GET="1")
    assert done.returncode == 0, done.stderr
    assert how(asking, BY_GET="1") is None
    assert how(asking, BY_GET="2") == "BY_GET has another value than for the snapshot"


def test_the_fields_of_settings_classes_count(asking: Served) -> None:
    pytest.importorskip("pydantic_settings")
    asking.write("""
        from pydantic import AliasChoices, Field
        from pydantic_settings import BaseSettings
        class Settings(BaseSettings, env_prefix="my_"):
            mode: str = "fast"
            level: int = Field(1, validation_alias=AliasChoices("LEVEL", "OLD_LEVEL"))
        class More(Settings):
            size: int = 1
        Settings(), More()
    """, "settings.py")  # fmt: skip
    assert asking.dump().returncode == 0
    assert how(asking, MODE="1") is None
    for name in ("MY_MODE", "my_mode", "LEVEL", "OLD_LEVEL", "MY_SIZE"):
        assert how(asking, **{name: "1"}) == f"{name} is set, which it was not for the snapshot"
    done = asking.dump(MY_SIZE="2")
    assert "the application asked for MY_SIZE (settings.More), which is set and was withheld" in done.stderr


LISTENING = """
    import http.server
    http.server.ThreadingHTTPServer(("127.0.0.1", {port}), http.server.SimpleHTTPRequestHandler).serve_forever()
"""
IN_A_CHILD = """
    import multiprocessing, runpy
    if __name__ == "__main__":
        child = multiprocessing.get_context("spawn").Process(target=runpy.run_path, args=("listening.py",))
        child.start()
        child.join()
"""
OPENED = ("call prebake.snapshot.here() once everything is loaded and before that, or serve the application by "
          "uvicorn, with one process")  # fmt: skip


def test_a_server_that_opens_its_port_first_is_refused(tmp_path: Path, native: Path) -> None:
    served = Served(tmp_path, native, ("python", "listening.py"))
    served.write(LISTENING.format(port=served.port), "listening.py")
    done = served.dump()
    opened = f"opens 127.0.0.1:{served.port} before it was dumped: {OPENED}"
    assert (done.returncode, done.stderr) == (1, f"prebake: error: no snapshot: listening.py {opened}\n")
    served.words = ("python", "main.py")
    served.write(IN_A_CHILD, "main.py")
    done = served.dump()
    assert done.returncode == 1
    assert f" {opened}\n" in done.stderr


def test_gunicorn_is_refused(tmp_path: Path, native: Path) -> None:
    pytest.importorskip("gunicorn")
    served = Served(tmp_path, native, ("gunicorn", "app:app", "--bind", "127.0.0.1:{port}"))
    served.write("def app(environ, start_response): ...\n")
    done = served.dump()
    assert done.returncode == 1
    assert f"opens 127.0.0.1:{served.port} before it was dumped: {OPENED}" in done.stderr


def test_here_in_a_program_that_prebake_run_prepares(tmp_path: Path, native: Path) -> None:
    """The report begins in the restored process: a thread could not be dumped."""
    served = Served(tmp_path, native, ("python", "main.py"))
    served.write("import torch\nfrom prebake import snapshot\nprint(snapshot.here())\n", "main.py")
    done = served.dump()
    assert done.returncode == 0, done.stderr
    report = tmp_path / "report.json"
    done = subprocess.run(
        [served.native / "prebake-restore", served.snapshot, *served.command], cwd=tmp_path,
        env=served.variables({"PREBAKE_REPORT": str(report)}), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")
    assert json.loads(report.read_text(encoding="utf-8"))["snapshot"]["tier"] == "snapshot"
