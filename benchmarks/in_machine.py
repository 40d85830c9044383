"""Runs in the virtual machine of `machines.py`, as root, with the image's Python and nothing but its standard library.

`job.json` beside it says what to do; the result is one line of JSON on the console.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import signal
import subprocess
import tarfile
import time
import traceback
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
USER = 12345
PR_SET_NO_NEW_PRIVS = 38
PATIENCE = 900.0
"""Seconds for one start: an emulated processor takes minutes for an ordinary one."""


def main() -> None:
    """Do the job and print its result."""
    result: Any
    try:
        result = {"dump": dump, "starts": starts}[_job()["do"]](_job())
    except BaseException:
        result = {"error": traceback.format_exc()}
    print("RESULT " + json.dumps(result), flush=True)


def _job() -> dict[str, Any]:
    job: dict[str, Any] = json.loads((HERE / "job.json").read_text(encoding="utf-8"))
    return job


def _as_a_user() -> None:
    """In the child: no privilege, as in a hardened container."""
    import ctypes

    os.setgroups([])
    os.setresgid(USER, USER, USER)
    os.setresuid(USER, USER, USER)
    ctypes.CDLL(None).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def machine() -> dict[str, Any]:
    """The kernel, and what the processor says of itself."""
    names = ("vendor_id", "model name", "flags")
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    told = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in reversed(lines))}
    return {"kernel": platform.release(), **{name: told.get(name) for name in names}}


def dump(job: dict[str, Any]) -> dict[str, Any]:
    """Run a command that writes the folder `keep`, and hand that out through the disk."""
    done = subprocess.run(job["command"], env=job["environment"], cwd=job["cwd"], stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=PATIENCE, check=False)  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{job['command']} ended with {done.returncode}: {done.stderr}")
    with Path(job["disk"]).open("wb") as disk, tarfile.open(fileobj=disk, mode="w") as tar:
        tar.add(job["keep"], arcname=".")
    os.sync()
    return {**machine(), "said": done.stderr.strip()}


def starts(job: dict[str, Any]) -> dict[str, Any]:
    """Start the service with its snapshot and without, and compare the answers."""
    first = _start(job, {})
    second = _start(job, {"PREBAKE_SNAPSHOT": "0"}) if job["compare"] else None
    return {**machine(), "first": first, "ordinary": second,
            "equal": second and first["answer"] == second["answer"]}  # fmt: skip


def _start(job: dict[str, Any], more: dict[str, str]) -> dict[str, Any]:
    log = HERE / "log"
    began = time.monotonic()
    with log.open("wb") as file:
        service = subprocess.Popen(job["command"], env={**job["environment"], **more}, cwd=job["cwd"], stdout=file,
                                   stderr=file, stdin=subprocess.DEVNULL, preexec_fn=_as_a_user)  # fmt: skip
    try:
        while _get(job["ready"]) is None:
            if service.poll() is not None or time.monotonic() - began > PATIENCE:
                raise RuntimeError(f"the service is not ready: {log.read_text(encoding='utf-8')}")
            time.sleep(0.02)
        ready = time.monotonic() - began
        startup = json.loads(_get(job["startup"]) or b"null")
        answer = _get(job["ask"], (HERE / "body").read_bytes())
        if answer is None:
            raise RuntimeError(f"{job['ask']} is not answered: {log.read_text(encoding='utf-8')}")
        answered = time.monotonic() - began
    finally:
        service.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            service.wait(60)
        service.kill()
    said = [line for line in log.read_text(encoding="utf-8").splitlines() if "snapshot" in line]
    return {"ready": round(ready, 2), "answered": round(answered, 2), "ended": service.wait(), "said": said,
            "snapshot": startup.get("snapshot"), "answer": hashlib.sha256(answer).hexdigest(),
            "text": answer.decode()[:300]}  # fmt: skip


def _get(path: str, body: bytes | None = None) -> bytes | None:
    """The answer, or None if there is none, or not yet."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:8000{path}", data=body, timeout=PATIENCE) as answer:
            content: bytes = answer.read()
            return content
    except urllib.error.HTTPError as error:
        if body is not None:
            raise RuntimeError(error.read().decode(errors="replace")) from error
        return None
    except OSError:
        return None


if __name__ == "__main__":
    main()
