"""Reading mapped weights into the page cache before they are used.

The file is read through, a piece at a time, by a thread that holds neither the interpreter's lock nor the lock of the
address space. The usual hints do worse, measured in docs/decisions/0009: `posix_fadvise(WILLNEED)` reads no more
than the disk's read-ahead in one call and makes single pages, each a fault of its own later; `MADV_POPULATE_READ`
holds up every allocation of the first answer.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path

from prebake import readahead

PIECE = 1 << 20
"""Bytes read at once: after each the thread waits for the interpreter's lock."""


def prefetch(paths: Iterable[Path]) -> threading.Thread:
    """Start reading the files into the page cache, in order, from a thread of its own.

    A hint and nothing more: what is absent or cannot be read is passed over. Pieces that are in the page
    cache cost a few system calls each.
    """
    entries = [(str(path), ()) for path in paths]
    options = {"readers": 1, "piece": PIECE}
    thread = threading.Thread(
        target=readahead.read, args=(entries,), kwargs=options, name="prebake-prefetch", daemon=True
    )
    thread.start()
    return thread
