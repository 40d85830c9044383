"""Writes a file and hashes it in the same pass, in two threads: hashing takes as long as copying does."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import BinaryIO

from prebake.errors import PrebakeError
from prebake_build.files import progress

CHUNK = 1 << 20
"""Bytes that are read, written and hashed at once. Chunks of 4 MB fall out of the processor's cache before they are
hashed, and take twice the processor time."""
_AHEAD = 3
"""Chunks that wait for the hash at most, which bounds the memory."""


class HashingWriter:
    """Counts and hashes what is written to a file. Leave the `with` block before asking for the digest."""

    def __init__(self, write: Callable[[bytes | memoryview], object]) -> None:
        self._write = write
        self._digest = hashlib.sha256()
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._waiting: list[Future[None]] = []
        self.size = 0

    def __enter__(self) -> HashingWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self._thread.shutdown(wait=True, cancel_futures=kind is not None)

    @property
    def digest(self) -> str:
        """`sha256:…` of everything written."""
        return "sha256:" + self._digest.hexdigest()

    def write(self, data: bytes | memoryview) -> int:
        """Write all of `data`, which must not change until the next `_AHEAD` writes are done."""
        self._waiting.append(self._thread.submit(self._digest.update, data))
        self._write(data)
        self.size += len(data)
        if len(self._waiting) > _AHEAD:
            self._waiting.pop(0).result()
        return len(data)

    def copy(self, source: BinaryIO, size: int, where: str) -> None:
        """Write exactly `size` bytes of `source`. Raises PrebakeError if it has another size by now."""
        buffers = [memoryview(bytearray(min(CHUNK, size))) for _ in range(_AHEAD + 2)]
        left, turn = size, 0
        while left:
            buffer = buffers[turn % len(buffers)][: min(left, CHUNK)]
            count = source.readinto(buffer)  # type: ignore[attr-defined]
            if not count:
                raise PrebakeError(f"{where}: expected {size:,} bytes, found {size - left:,}: it changed meanwhile")
            self.write(buffer[:count])
            progress.add(count)
            left -= count
            turn += 1
        if source.read(1):
            raise PrebakeError(f"{where}: has more than {size:,} bytes: it changed meanwhile")
