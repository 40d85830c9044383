"""Snapshots on other kernels and processors than those of the dump: restored, or refused with an ordinary start?

    python benchmarks/kernels.py --image prebake-snapshot --kernel kernels/6.1 --kernel kernels/6.12 \\
        --cpu Haswell --cpu EPYC-Rome --dump-on Haswell

Boots each kernel on each processor in QEMU (`machines.py` says where to get them), starts the image's service in it
under a user without privileges, asks once, starts it again without the snapshot and compares the answers.
`--dump-on CPU` first takes another snapshot on such a processor, under the first kernel, and uses it instead of the
image's; `--keep` keeps it. Prints a line for each machine and writes JSON. Times are those of an emulated processor:
20 to 100 times too long.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from machines import Kernel, Machine, MachineError, missing

DUMP = "/dev/shm/dumped"
PLAIN = ("-noI", "-noD", "-noF", "-noX", "-processors", "1")
"""No compression, which an emulated processor would have to undo."""
_PICTURE = """
import io, sys
from image_analyzer.example import example
body = io.BytesIO()
example().save(body, "PNG")
sys.stdout.buffer.write(body.getvalue())
"""


class Image:
    """An image of the reference service with a snapshot, exported as a squashfs."""

    def __init__(self, name: str, folder: Path) -> None:
        found = subprocess.run(["docker", "image", "inspect", name], capture_output=True, check=True).stdout
        config = json.loads(found)[0]["Config"]
        self.command: list[str] = [*config["Entrypoint"], *config["Cmd"]]
        self.environment = dict(pair.split("=", 1) for pair in config["Env"])
        self.cwd = config["WorkingDir"] or "/"
        self.root = folder / "root.squashfs"
        if not self.root.exists():
            self._export(name)
        python = ["--entrypoint", "/opt/prebake/bin/python", name, "-c", _PICTURE]
        made = subprocess.run(["docker", "run", "--rm", "--network=none", *python], capture_output=True, check=True)
        self.picture = made.stdout

    def _export(self, name: str) -> None:
        created = subprocess.run(["docker", "create", name], capture_output=True, text=True, check=True).stdout.strip()
        try:
            with subprocess.Popen(["docker", "export", created], stdout=subprocess.PIPE) as export:
                squash(["sqfstar", "-quiet", "-no-progress", *PLAIN, str(self.root)], export.stdout)
        finally:
            subprocess.run(["docker", "rm", created], capture_output=True, check=True)

    def job(self, *, ask: str, compare: bool) -> dict[str, Any]:
        """Start the service as the container would."""
        return {"do": "starts", "command": self.command, "environment": self.environment, "cwd": self.cwd,
                "ready": "/readyz", "startup": "/startup", "ask": ask, "compare": compare}  # fmt: skip

    def dump(self) -> dict[str, Any]:
        """Take a snapshot as the build does."""
        command = [self.command[2], "snapshot", "--output", DUMP, "--", *self.command[2:]]
        return {"do": "dump", "command": command, "environment": self.environment, "cwd": self.cwd, "keep": DUMP}


def squash(command: Sequence[str], source: Any = None) -> None:
    """Run a program that writes a squashfs."""
    subprocess.run(command, stdin=source, check=True, stdout=subprocess.DEVNULL)


def told(result: dict[str, Any]) -> str:
    """One start in words."""
    first, ordinary = result["first"], result["ordinary"]
    snapshot = first["snapshot"] or {}
    what = f"refused: {snapshot['reason']}" if snapshot.get("reason") else f"restored, vDSO {snapshot.get('vdso')}"
    same = {None: "", True: ", same answer as an ordinary start", False: ", ANOTHER ANSWER"}[result["equal"]]
    plain = f" (ordinary {ordinary['ready']} s)" if ordinary else ""
    return f"{what}; ready {first['ready']} s{plain}{same}"


def main() -> int:
    """Run the matrix; 1 if a machine failed or an answer differs."""
    options = _options()
    if why := missing():
        sys.exit(f"kernels: {why}")
    options.work.mkdir(parents=True, exist_ok=True)
    image = Image(options.image, options.work)
    kernels = [Kernel.in_folder(folder) for folder in options.kernel]
    snapshot = options.snapshot and _squashed(options.snapshot, options.work)
    results: list[dict[str, Any]] = []
    if options.dump_on:
        keep = options.keep or Path(tempfile.mkdtemp(dir=options.work))
        said = Machine(kernel=kernels[0], cpu=options.dump_on, accelerator=options.accelerator).run(
            image.root, image.dump(), output=keep, seconds=options.seconds)  # fmt: skip
        print(f"dumped on {options.dump_on}, Linux {said['kernel']}: {said['said'].splitlines()[-1]}", flush=True)
        snapshot = _squashed(keep, options.work)
    failed = False
    for kernel in kernels:
        for cpu in options.cpu:
            began = time.monotonic()
            machine = Machine(kernel=kernel, cpu=cpu, accelerator=options.accelerator)
            try:
                job = image.job(ask=options.ask, compare=not options.first_only)
                result = machine.run(image.root, job, files={"body": image.picture}, snapshot=snapshot,
                                     seconds=options.seconds)  # fmt: skip
            except MachineError as error:
                result, line = {"error": str(error)}, f"failed: {error}"
            else:
                line = told(result)
            failed |= "error" in result or result["equal"] is False
            results.append(
                {"cpu": cpu, "image": kernel.image.name, "machine_seconds": time.monotonic() - began, **result}
            )
            print(f"{result.get('kernel', kernel.image)} on {cpu}: {line}", flush=True)
            options.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 1 if failed else 0


def _squashed(folder: Path, work: Path) -> Path:
    target = work / f"snapshot-{time.time_ns()}.squashfs"
    squash(["mksquashfs", str(folder), str(target), "-quiet", "-no-progress", *PLAIN])
    return target


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", required=True, help="an image of `docker buildx bake snapshot`")
    parser.add_argument(
        "--kernel", type=Path, action="append", required=True, help="folder of an unpacked kernel; repeatable"
    )
    parser.add_argument("--cpu", action="append", help="QEMU's name of a processor; repeatable (default: max)")
    parser.add_argument("--accelerator", default="tcg,thread=multi", help="kvm, where it can be had")
    parser.add_argument("--snapshot", type=Path, help="a folder with a snapshot to use instead of the image's")
    parser.add_argument("--dump-on", metavar="CPU", help="take a snapshot on this processor first")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="where the snapshot of --dump-on is kept")
    parser.add_argument("--ask", default="/caption", help="what is asked with a picture")
    parser.add_argument("--first-only", action="store_true", help="no ordinary start for comparison")
    parser.add_argument("--seconds", type=float, default=1500, help="limit for one machine")
    parser.add_argument("--work", type=Path, default=Path("dist/kernels"), help="folder for the exported image")
    parser.add_argument("--output", type=Path, default=Path("dist/kernels/kernels.json"))
    options = parser.parse_args()
    options.cpu = options.cpu or ["max"]
    return options


if __name__ == "__main__":
    sys.exit(main())
