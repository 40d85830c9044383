"""A program that is dumped under another kernel, on another processor, goes on here.

Needs QEMU and a kernel: PREBAKE_TEST_KERNEL names the folder of its unpacked packages (`benchmarks/machines.py`).
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import sysconfig
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.snapshots import RUNTIME, Program
from machines import Kernel, Machine, missing
from prebake.snapshot import programs

PROGRAM = """
    import hashlib, json, ssl, threading, time
    from prebake import snapshot
    from prebake.telemetry import restored
    learned = {n: str(n) for n in range(1000)}
    snapshot.here()
    thread = threading.Thread(target=time.sleep, args=(0.01,))
    thread.start()
    thread.join()
    numbers = [f"{n / 7:.6f}" for n in range(1000)]
    print(json.dumps({"learned": sum(map(int, learned.values())), "vdso": (restored.document() or {}).get("vdso"),
                      "numbers": hashlib.sha256("".join(numbers).encode()).hexdigest()}))
"""
PYTHON = os.path.realpath(sys.executable)
_FOUND = re.compile(r"(/\S+)(?: \(0x[0-9a-f]+\))?$", re.MULTILINE)


@pytest.fixture
def machine(native: Path) -> Machine:
    folder = os.environ.get("PREBAKE_TEST_KERNEL")
    if not folder:
        pytest.skip("PREBAKE_TEST_KERNEL is not set: a folder with a kernel to boot")
    if why := missing():
        pytest.skip(why)
    return Machine(kernel=Kernel.in_folder(Path(folder)), cpu="Haswell")


def _of_python() -> Iterator[Path]:
    """The interpreter, the standard library and all shared libraries, where this system has them."""
    library = Path(sysconfig.get_path("stdlib"))
    extensions = [str(path) for path in (library / "lib-dynload").glob("*.so")]
    listed = subprocess.run(["ldd", PYTHON, *extensions], capture_output=True, text=True, check=False).stdout
    yield from (Path("/lib"), Path("/lib64"), Path(PYTHON), library)
    for name in {*_FOUND.findall(listed), "/lib64/ld-linux-x86-64.so.2"}:
        path = Path(name.rstrip(":"))
        yield path.parent.resolve() / path.name
        yield path.resolve()


def _root(target: Path, more: list[Path]) -> Path:
    paths = sorted({str(path) for path in [*_of_python(), *more] if path.exists() and (path.is_symlink() or path not in
                    (Path("/lib"), Path("/lib64")))})  # fmt: skip
    subprocess.run(["mksquashfs", *paths, str(target), "-no-strip", "-quiet", "-no-progress", "-noI", "-noD", "-noF",
                    "-noX", "-wildcards", "-e", "... test", "... dist-packages", "... site-packages", "... .git"],
                   capture_output=True, check=True)  # fmt: skip
    return target


def test_a_dump_from_an_older_processor_under_another_kernel_goes_on_here(program: Program, machine: Machine) -> None:
    """Its vector registers take less room there: functions that were bound at their first call would overwrite the
    stack, if the processor here has AVX-512."""
    program.write(textwrap.dedent(PROGRAM))
    for file in program.native.iterdir():
        os.utime(file, (1, 1))  # a squashfs keeps seconds
    command = [PYTHON, str(program.folder / "program.py")]
    root = _root(program.folder / "root.squashfs", [RUNTIME / "prebake", program.folder / "program.py", program.native])
    environment = {"PATH": "/usr/bin", "PYTHONPATH": str(RUNTIME), "PYTHONDONTWRITEBYTECODE": "1",
                   programs.ENV: str(program.native)}  # fmt: skip
    dump = [PYTHON, "-m", "prebake", "snapshot", "--output", "/dev/shm/dumped", "--", *command]
    job = {"do": "dump", "command": dump, "environment": environment, "cwd": "/", "keep": "/dev/shm/dumped"}
    said = machine.run(root, job, output=program.snapshot, python=PYTHON, seconds=240)
    assert said["said"].startswith("snapshot: ")
    assert said["kernel"] != platform.release()
    done = subprocess.run([*program.restorer, *command], env=environment, capture_output=True, text=True, timeout=60)
    ordinary = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    assert json.loads(done.stdout) == {**json.loads(ordinary.stdout), "vdso": "replaced"}
