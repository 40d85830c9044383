"""Virtual machines with a kernel and a processor of one's choice: QEMU boots a kernel of a Debian package, with a
squashfs as its root, runs one job in it (`in_machine.py`), and powers off. No network, no privilege; KVM is not needed.

    apt-get install qemu-system-x86 squashfs-tools
    apt-get download linux-image-6.1.0-47-cloud-amd64 busybox-static   (from 7.x on: linux-binary-…, linux-modules-…)
    for package in *.deb; do dpkg-deb -x $package kernels/6.1; done
"""

from __future__ import annotations

import json
import lzma
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRAMS = ("qemu-system-x86_64", "mksquashfs")
MODULES = ("virtio_pci", "virtio_blk", "squashfs", "overlay")
RESULT = "RESULT "
_INIT = """#!/bin/busybox sh
cd /; /bin/busybox mkdir -p /proc /dev /lower /rw /root
/bin/busybox mount -t devtmpfs dev /dev
for module in /modules/*; do /bin/busybox insmod "$module" || echo "$module can't be loaded"; done
/bin/busybox mount -t squashfs -o ro /dev/vda /lower
/bin/busybox mount -t tmpfs rw /rw
/bin/busybox mkdir /rw/upper /rw/work
/bin/busybox mount -t overlay -o lowerdir=/lower,upperdir=/rw/upper,workdir=/rw/work root /root
/bin/busybox mkdir -p /root/proc /root/sys /root/dev /root/tmp /root/snapshot
/bin/busybox mount -t proc proc /root/proc
/bin/busybox mount -t sysfs sys /root/sys
/bin/busybox mount -t devtmpfs dev /root/dev
/bin/busybox mkdir -p /root/dev/shm
/bin/busybox mount -t tmpfs -o mode=1777 shm /root/dev/shm
/bin/busybox chmod 1777 /root/tmp
/bin/busybox ifconfig lo 127.0.0.1 up
if [ -e /with-snapshot ]; then /bin/busybox mount -t squashfs -o ro /dev/vdb /root/snapshot; fi
/bin/busybox cp -r /job /root/dev/shm/job
/bin/busybox chroot /root $(/bin/busybox cat /job/python) -IB /dev/shm/job/in_machine.py </dev/null
/bin/busybox poweroff -f
"""
_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")


class MachineError(Exception):
    """The machine did not do its job; the text is the end of its console."""


def missing() -> str | None:
    """Which program is not installed, or None."""
    return next((f"{name} is not installed" for name in PROGRAMS if not shutil.which(name)), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernel:
    """A kernel, its modules, and a static busybox: the folder into which their packages were unpacked."""

    image: Path
    busybox: Path
    modules: dict[str, Path]

    @classmethod
    def in_folder(cls, folder: Path) -> Kernel:
        """Raises FileNotFoundError if there is no kernel or no busybox in it."""
        images = sorted(path for path in folder.rglob("vmlinuz*") if path.is_file() and not path.is_symlink())
        if not images:
            raise FileNotFoundError(f"{folder}: no vmlinuz in it: unpack a linux-image package there (dpkg-deb -x)")
        modules = {path.name.partition(".ko")[0].replace("-", "_"): path for path in folder.rglob("*.ko*")}
        busybox = next((path for path in folder.rglob("busybox") if path.is_file()), None)
        if busybox is None:
            raise FileNotFoundError(
                f"{folder}: no busybox in it: unpack the package busybox-static there (dpkg-deb -x)"
            )
        return cls(image=images[0], busybox=busybox, modules=modules)

    def in_order(self, names: Sequence[str]) -> list[bytes]:
        """The contents of these modules, each after those that it depends on. Those that are built in are left out."""
        taken: dict[str, bytes] = {}
        for name in names:
            self._take(name, taken)
        return [*taken.values()]

    def _take(self, name: str, taken: dict[str, bytes]) -> None:
        path = self.modules.get(name)
        if path is None or name in taken:
            return
        content = path.read_bytes()
        content = lzma.decompress(content) if path.suffix == ".xz" else content
        found = _DEPENDS.search(content)
        for each in found[1].decode().split(",") if found else ():
            self._take(each.replace("-", "_"), taken)
        taken[name] = content


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What QEMU is started with."""

    kernel: Kernel
    cpu: str = "max"
    accelerator: str = "tcg,thread=multi"
    memory: int = 3072
    """MiB."""
    processors: int = 2

    def run(self, root: Path, job: Mapping[str, Any], *, files: Mapping[str, bytes] | None = None,
            snapshot: Path | None = None, output: Path | None = None, python: str = "/usr/local/bin/python3",
            seconds: float = 600) -> Any:  # fmt: skip
        """Do a job in the machine, and return its result.

        `root` is a squashfs with Python, `files` are put beside the job, `snapshot` (a squashfs) is mounted at
        /snapshot, and the job's folder `job["keep"]` is unpacked into `output`. Raises MachineError.
        """
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            disks = [(root, "on"), *([(snapshot, "on")] if snapshot else [])]
            if output:
                kept = folder / "kept.tar"
                with kept.open("wb") as file:
                    file.truncate(1 << 30)
                disks.append((kept, "off"))
            declared = {**job, "disk": f"/dev/vd{'abc'[len(disks) - 1]}" if output else None}
            (folder / "initramfs").write_bytes(self._initramfs(declared, files or {}, python, snapshot is not None))
            console = self._boot(folder / "initramfs", disks, seconds)
            result = _result(console)
            if output:
                with tarfile.open(kept) as tar:
                    tar.extractall(output, filter="data")
            return result

    def _initramfs(self, job: Mapping[str, Any], files: Mapping[str, bytes], python: str, snapshot: bool) -> bytes:
        program = Path(__file__).with_name("in_machine.py").read_bytes()
        entries = {
            "init": _INIT.encode(), "bin/busybox": self.kernel.busybox.read_bytes(), "job/in_machine.py": program,
            "job/job.json": json.dumps(job).encode(), "job/python": python.encode(),
            **{f"job/{name}": content for name, content in files.items()},
            **{f"modules/{n:02}.ko": content for n, content in enumerate(self.kernel.in_order(MODULES))},
            **({"with-snapshot": b""} if snapshot else {}),
        }  # fmt: skip
        folders = ("bin", "job", "modules")
        return (b"".join(_entry(name, 0o040755, b"") for name in folders)
                + b"".join(_entry(name, 0o100755, content) for name, content in entries.items())
                + _entry("TRAILER!!!", 0, b""))  # fmt: skip

    def _boot(self, initramfs: Path, disks: Sequence[tuple[Path, str]], seconds: float) -> str:
        command = [
            PROGRAMS[0], "-machine", "q35", "-accel", self.accelerator, "-cpu", self.cpu, "-m", str(self.memory),
            "-smp", str(self.processors), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-serial", "stdio", "-kernel", str(self.kernel.image), "-initrd", str(initramfs),
            "-append", "console=ttyS0 quiet panic=-1 random.trust_cpu=on",
        ]  # fmt: skip
        for number, (path, read_only) in enumerate(disks):
            command += ["-drive", f"if=none,id=d{number},format=raw,readonly={read_only},file={path}",
                        "-device", f"virtio-blk-pci,drive=d{number}"]  # fmt: skip
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                  timeout=seconds, check=False)  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise MachineError(f"not done after {seconds} s: {_end(error.output or b'')}") from error
        return done.stdout.decode(errors="replace")


def _entry(name: str, mode: int, content: bytes) -> bytes:
    """One file of an initramfs (the kernel's Documentation/driver-api/early-userspace/buffer-format.rst)."""
    encoded = name.encode() + b"\0"
    numbers = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
    head = b"070701" + b"".join(b"%08x" % number for number in numbers) + encoded
    return head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)


def _result(console: str) -> Any:
    for line in console.splitlines():
        if RESULT in line:
            result = json.loads(line.partition(RESULT)[2])
            if isinstance(result, dict) and "error" in result:
                raise MachineError(result["error"])
            return result
    raise MachineError(_end(console.encode()))


def _end(console: bytes) -> str:
    return console.decode(errors="replace")[-3000:]
