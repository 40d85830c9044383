"""What the kernel says of other processes: who belongs to a session, its memory, and where it listens.

Linux only (`/proc`); elsewhere nothing is found.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_LISTEN = "0A"
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Memory of a group of processes, in bytes, each summed over them."""

    peak: int
    """Highest resident memory of each. Pages that processes share count in each of them."""
    anonymous: int
    """Private memory now."""


def session(leader: int) -> list[int]:
    """The processes of the session with this leader, the zombies left out."""
    return [pid for pid, state, of in _processes() if of == leader and state != "Z"]


def _processes() -> Iterator[tuple[int, str, int]]:
    """Process id, state and session of every process (man 5 proc_pid_stat)."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            after_name = (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            yield int(folder.name), after_name[0], int(after_name[3])
        except (OSError, ValueError, IndexError):
            continue  # it ended meanwhile


def memory_of(pids: Iterable[int]) -> Memory | None:
    """The memory of these processes; None if none of them exists."""
    found = [kinds for pid in pids if (kinds := _status(pid))]
    if not found:
        return None
    return Memory(
        peak=sum(kinds.get("VmHWM", 0) for kinds in found), anonymous=sum(kinds.get("RssAnon", 0) for kinds in found)
    )


def cpu_seconds(pids: Iterable[int]) -> float:
    """Seconds of processor time that these processes have used, the children included that they have waited for."""
    ticks = 0
    for pid in pids:
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            ticks += sum(map(int, stat[11:15]))
        except (OSError, ValueError):
            continue
    return ticks / os.sysconf("SC_CLK_TCK")


def _status(pid: int) -> dict[str, int]:
    kinds = {}
    try:
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name in ("VmHWM", "RssAnon"):
                kinds[name] = int(value.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        return {}
    return kinds


def listening(pids: Iterable[int]) -> list[str]:
    """`http://HOST:PORT` of each TCP port on which these processes listen, the lowest port first."""
    sockets: set[str] = set()
    tables: dict[str, str] = {}
    for pid in pids:
        try:
            links = [str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()]
            texts = {name: Path(f"/proc/{pid}/net/{name}").read_text(encoding="utf-8") for name in ("tcp", "tcp6")}
        except OSError:
            continue
        sockets |= {link[len("socket:[") : -1] for link in links if link.startswith("socket:[")}
        tables |= texts  # all of one network namespace
    found = {address for text in tables.values() for address in _addresses(text, sockets)}
    return [f"http://{host}:{port}" for port, host in sorted(found)]


def _addresses(text: str, sockets: set[str]) -> Iterator[tuple[int, str]]:
    """Port and host of those of these sockets that listen (Documentation/networking/proc_net_tcp.rst of Linux)."""
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 9 and fields[3] == _LISTEN and fields[9] in sockets:
            address, _, port = fields[1].partition(":")
            words = [struct.pack("=I", int(address[at : at + 8], 16)) for at in range(0, len(address), 8)]
            host = socket.inet_ntop(socket.AF_INET if len(words) == 1 else socket.AF_INET6, b"".join(words))
            host = _ANY.get(host, host)
            yield int(port, 16), f"[{host}]" if ":" in host else host
