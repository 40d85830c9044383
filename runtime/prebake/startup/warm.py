"""Whether a start is warm: what it will read is in the page cache, judged by samples, in a few milliseconds.

Where the system can tell (`RWF_NOWAIT`) it is asked. Overlayfs, in which the files of containers are, cannot: there a
read is timed against the same read again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress

from prebake.startup.readahead import Ranges, is_cached, parse

SAMPLES = 64
"""Files, and parts of each, that are looked at first: where all are in the page cache the start is warm, and no reader
begins."""
LONG = 256
"""Characters of a line, from which on its file is looked at in any case: a library of which parts may be gone."""
SLOW = 10
"""A read that takes more than this many times as long as the same read again, from memory then, came from a disk. On
overlayfs 1 to 10 times from memory (95 % below 4.4), 25 to 1,000 times from a fast disk. Now and then another process
has its turn meanwhile."""
COLD = 4
"""Such reads, from which on a start is taken for a cold one, if they are every fourth or more of those tried."""
NOT_CACHED = float("inf")


def is_warm(lines: Sequence[str]) -> bool:
    """Whether what a list names is in the page cache, judged by a few lines: the others are not even parsed."""
    step = len(lines) // SAMPLES + 1
    looked_at = [line for number, line in enumerate(lines[1:]) if number % step == 0 or len(line) >= LONG]
    ((entries, _),) = parse(
        [*lines[:1], *(line for line in looked_at if not line.startswith("@") and not line.endswith("/"))]
    )
    tried = slow = 0
    for path, ranges in entries:
        with suppress(OSError):  # nothing to read
            for times in _waits(path, ranges):
                tried += 1
                slow += times > SLOW
                if times == NOT_CACHED or (slow >= COLD and 4 * slow >= tried):
                    return False
    return True


def _waits(path: str, ranges: Ranges) -> Iterator[float]:
    """For parts of the file 0, or `NOT_CACHED` where it is not in the page cache. Where the system cannot tell
    (overlayfs, in which containers' files are), how many times longer its ends take to be read than they do again."""
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
