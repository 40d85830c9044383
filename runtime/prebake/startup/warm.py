"""Checks whether a start, or one large file, is warm, that is, in the page cache: by samples, in a few milliseconds.

Uses `RWF_NOWAIT` if the file system supports it. Overlayfs, which containers use, does not: there the time of a read is
compared with that of the same read repeated, and a single file is cold if a read made the kernel ask a disk.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress

from prebake.startup.readahead import Ranges, is_cached, parse

SAMPLES = 64
"""Number of files, and of ranges in each, to check: if all are in the page cache, the start is warm and needs no
reader."""
LONG = 256
"""Files whose lines have at least this many characters are always checked: libraries that may be partly evicted."""
SLOW = 10
"""If a read takes more than this many times as long as the same read repeated, it came from a disk. Measured on
overlayfs: 1 to 10 times from memory (95 % below 4.4), 25 to 1,000 times from a fast disk. Sometimes another process
runs in between."""
COLD = 4
"""A start is cold if at least this many reads were slow, and at least a quarter of all reads tried."""
NOT_CACHED = float("inf")


def is_warm(lines: Sequence[str]) -> bool:
    """Whether the listed files are in the page cache, judged by a sample of the lines; only these are parsed."""
    step = len(lines) // SAMPLES + 1
    looked_at = [line for number, line in enumerate(lines[1:]) if number % step == 0 or len(line) >= LONG]
    ((entries, _),) = parse(
        [*lines[:1], *(line for line in looked_at if not line.startswith("@") and not line.endswith("/"))]
    )
    tried = slow = 0
    for path, ranges in entries:
        with suppress(OSError):  # missing or unreadable
            for times in _waits(path, ranges):
                tried += 1
                slow += times > SLOW
                if times == NOT_CACHED or (slow >= COLD and 4 * slow >= tried):
                    return False
    return True


def seems_warm(path: str | os.PathLike[str]) -> bool:
    """Whether a sample of the file is in the page cache; False if its file system can tell exactly (`is_cached`).

    Raises OSError if it can't be read. While other threads import, each read waits for the GIL, so times say little.
    But the kernel counts what this thread fetched from disks (`ru_inblock`). It doesn't for FUSE, which lazy image
    snapshotters use: such waits show in the times.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _can_tell(descriptor):  # asking more would start reads that make holes look cached
            return False
        size = os.fstat(descriptor).st_size
        slow = 0
        for sample in range(SAMPLES if size else 0):
            before = resource.getrusage(resource.RUSAGE_THREAD).ru_inblock
            part = (size * sample // SAMPLES, 1)
            slow += _seconds(descriptor, *part) / max(_seconds(descriptor, *part), 1e-9) > SLOW
            if resource.getrusage(resource.RUSAGE_THREAD).ru_inblock > before:
                return False
        return slow < SAMPLES // 2
    finally:
        os.close(descriptor)


def _waits(path: str, ranges: Ranges) -> Iterator[float]:
    """For each sampled range, 0 if it is in the page cache, else `NOT_CACHED`. If the file system can't tell
    (overlayfs), the ratio between the time of a read of its ends and that of the same read repeated."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        can_tell = _can_tell(descriptor)
        for part in ranges[:: len(ranges) // SAMPLES + 1] or ((0, os.fstat(descriptor).st_size),):
            if not can_tell:
                yield _seconds(descriptor, *part) / max(_seconds(descriptor, *part), 1e-9)
            else:
                yield 0.0 if is_cached(descriptor, *part) else NOT_CACHED
    finally:
        os.close(descriptor)


def _can_tell(descriptor: int) -> bool:
    try:
        os.preadv(descriptor, [bytearray(1)], 0, os.RWF_NOWAIT)
    except BlockingIOError:
        return True
    except (OSError, AttributeError):
        return False
    return True


def _seconds(descriptor: int, offset: int, length: int) -> float:
    began = time.perf_counter()
    for at in (max(0, offset + length - 1), offset):
        os.pread(descriptor, 1, at)
    return time.perf_counter() - began
