"""The functions of the kernel's vDSO, and the system calls that do the same (man 7 vdso; ELF-64).

Another kernel has other functions at other places, so a process that is restored there finds stubs at the old places.
"""

from __future__ import annotations

import struct

CALLS = {"clock_gettime": 228, "gettimeofday": 96, "time": 201, "clock_getres": 229, "getcpu": 309, "getrandom": 318}
"""Name → number of the system call of x86-64."""
STUB = 16
"""Bytes that must be free at a function's place."""


def entries(image: bytes) -> tuple[tuple[int, int], ...]:
    """Offset and system call of each function. Raises ValueError if the image is malformed or has a function that no
    system call replaces."""
    try:
        return tuple(sorted(_entries(image)))
    except (struct.error, IndexError) as error:
        raise ValueError(f"the vDSO can't be read: {error}") from error


def _entries(image: bytes) -> set[tuple[int, int]]:
    sections_at, entry_bytes, count = *struct.unpack_from("<Q", image, 0x28), *struct.unpack_from("<HH", image, 0x3A)
    sections = [struct.unpack_from("<IIQQQQIIQQ", image, sections_at + i * entry_bytes) for i in range(count)]
    found = set()
    for section in sections:
        if section[1] != 11:  # SHT_DYNSYM
            continue
        names = sections[section[6]][4]
        for at in range(section[4], section[4] + section[5], 24):
            name_at, info, _, defined, value, _ = struct.unpack_from("<IBBHQQ", image, at)
            if info & 15 != 2 or not defined:  # STT_FUNC
                continue
            name = image[names + name_at : image.index(b"\0", names + name_at)].decode("ascii", "replace")
            call = CALLS.get(name.removeprefix("__vdso_"))
            if call is not None:
                found.add((value, call))
            elif name != "__vdso_sgx_enter_enclave":  # no library calls it unasked
                raise ValueError(f"the vDSO has a function that no system call replaces: {name}")
    if not found:
        raise ValueError("the vDSO has no functions")
    return found
