"""The dump: a child of this process stops, and this process writes what it holds.

The child of a fork is a copy with the same memory and one thread; it stops in `prebake_pause` and is never continued.
Its parent reads `/proc/CHILD/maps`, `pagemap` and `mem`, for which a process needs no privilege over its own child.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from prebake.errors import SnapshotError
from prebake.snapshot import vdso
from prebake.snapshot.environment import BOUND
from prebake.snapshot.folder import NO_IDENTITY, finish, new_image
from prebake.snapshot.memory import Layout, as_it_is, lay_out
from prebake.snapshot.process import Stopped
from prebake.snapshot.programs import Library
from prebake.snapshot.table import Table, Vdso, checksum


@dataclass(frozen=True, kw_only=True, slots=True)
class Dumped:
    """What was written."""

    image_bytes: int
    copied_bytes: int
    mappings: int
    files: int
    seconds: float

    def __str__(self) -> str:
        copied = f"{self.copied_bytes / 1e6:.1f} MB of them copied at each start"
        return (f"snapshot: {self.image_bytes / 1e6:.0f} MB in memory.img ({copied}), {self.mappings} mappings, "
                f"{self.files} files, {self.seconds:.2f} s")  # fmt: skip


def fork_and_dump(library: Library, output: Path, *, bound: Iterable[str], names: Iterable[str] = (),
                  watched: Iterable[Path] = ()) -> int | Dumped:  # fmt: skip
    """Write a snapshot of this process into the folder `output`.

    In this process: what was written. In the restored process: the address of the handover. Raises SnapshotError.
    """
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            return library.pause() or os._exit(1)
        except BaseException:
            os._exit(1)
    try:
        _, status = os.waitpid(child, os.WUNTRACED)
        if not os.WIFSTOPPED(status) or os.WSTOPSIG(status) != signal.SIGSTOP:
            raise SnapshotError(
                "the kernel does not tell the process's state (prctl PR_GET_TID_ADDRESS, get_robust_list, rseq)"
            )
        return _write(library, Stopped(child), output, [*bound], [*names], watched, began)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _write(library: Library, stopped: Stopped, output: Path, bound: list[str], names: list[str],
           watched: Iterable[Path], began: float) -> Dumped:  # fmt: skip
    try:
        with new_image(output) as image:
            layout = lay_out(stopped, image)
            table = _table(library, stopped, layout, bound, names, watched)
            if wrong := library.check(table.to_bytes()):
                raise SnapshotError(f"the table would be refused: {wrong}")
            finish(output, image, table, layout.content)
    except ValueError as error:
        raise SnapshotError(str(error)) from error
    finally:
        stopped.close()
    return Dumped(image_bytes=layout.image_bytes, copied_bytes=layout.copied, mappings=len(layout.mappings),
                  files=len(layout.paths), seconds=time.monotonic() - began)  # fmt: skip


def _table(library: Library, stopped: Stopped, layout: Layout, bound: list[str], names: list[str],
           watched: Iterable[Path]) -> Table:  # fmt: skip
    mapped = [as_it_is(path) for path in layout.paths]
    others = sorted({str(path) for path in watched} - set(layout.paths))
    return Table(
        id=NO_IDENTITY, image_bytes=layout.image_bytes, resume=library.resume, frame=library.frame, vdso=_vdso(stopped),
        memory=stopped.memory_map(), cpu=library.cpu(), mappings=layout.mappings,
        files=[*mapped, *(as_it_is(path, head=False) for path in others)], bound=bound, names=[*names, *BOUND],
    )  # fmt: skip


def _vdso(stopped: Stopped) -> Vdso:
    code = next((area for area in stopped.areas if area.name == "[vdso]"), None)
    if code is None:
        raise SnapshotError("the process has no vDSO")
    start = min(area.start for area in stopped.areas if area.name.startswith(("[vvar", "[vdso")))
    image = stopped.read(code.start, code.end - code.start)
    return Vdso(data=start, start=code.start, end=code.end, checksum=checksum(image), entries=vdso.entries(image))
