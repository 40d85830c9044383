"""The worker's side of its isolation: drops privileges before the process reads a byte of a checkpoint.

It applies these layers; each is tried independently of the others (docs/decisions/0012-worker-isolation.md):

1. separate namespaces for processes, mounts, network and IPC: other processes and the network are invisible, and empty
   mounts cover the usual places of credentials. Without CAP_SYS_ADMIN, inside a user namespace;
2. capabilities and `no_new_privs`: root can still read and write files, but can't trace more privileged processes;
3. Landlock: no tracing of processes outside, no TCP, no writing outside of its own folders. Works where namespaces are
   forbidden, as in an image build;
4. RLIMIT_DATA: limits allocated memory; mapped checkpoints count too.

Everything must be imported before `enter`: mounts may cover files. Linux only, through `ctypes` (`os.unshare` exists
since Python 3.12).
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import struct
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)

_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 1, 24, 38, 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_CLONE_NEWNS, _CLONE_NEWIPC, _CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWNET = (
    0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
)  # fmt: skip
_NAMESPACES = _CLONE_NEWNS | _CLONE_NEWPID | _CLONE_NEWNET | _CLONE_NEWIPC
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 2, 4, 8, 4096, 16384, 1 << 18
_CAP_DAC_OVERRIDE = 1
_CAPABILITIES = 64
"""More than any kernel has; the kernel rejects unknown ones."""
_CAPABILITY_VERSION_3 = 0x20080522

# The numbers of these three calls are the same on all architectures.
_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446
_LANDLOCK_CREATE_RULESET_VERSION = 1
_LANDLOCK_RULE_PATH_BENEATH = 1
_FS_WRITE_FILE, _FS_MAKE_BLOCK, _FS_REFER, _FS_TRUNCATE = 1 << 1, 1 << 11, 1 << 13, 1 << 14
_FS_CHANGES = _FS_WRITE_FILE | 0b1_1111_1111_0000  # and to remove and make files, folders, links, devices, sockets
_DEVICES = ("/dev",)
"""Written to by everybody: /dev/null, /dev/shm."""
_NET_BIND_TCP, _NET_CONNECT_TCP = 1, 2
_SCOPE_ABSTRACT_UNIX_SOCKET, _SCOPE_SIGNAL = 1, 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What to hide and what to keep visible; plain values, so it can be passed as JSON."""

    homes: Sequence[str] = ()
    """Folders whose hidden entries are covered."""
    covered: Sequence[str] = ()
    """Folders and files that are covered, in any location."""
    hidden: Sequence[str] = ()
    """Folders that are covered even inside of `kept`."""
    kept: Sequence[str] = ()
    """Paths that stay visible, besides those that Python imports from."""
    empty_folder: str = ""
    """The empty folder that is mounted over folders."""
    empty_file: str = ""
    """The empty file that is mounted over files."""
    writable: Sequence[str] = ()
    """The folders that the worker can write to; it must be able to write to the first."""
    confined: bool = False
    """Whether to end if the system can't keep it from writing elsewhere."""
    memory: int | None = None
    """Bytes for RLIMIT_DATA; None for no limit."""


def enter(plan: Plan) -> None:
    """Confine this process, which must have one thread. Skips what the system forbids; prints a warning if that
    matters.

    If a process namespace is allowed, this function returns in a child process. The parent waits, exits the way the
    child exits, and if it is killed, the child is killed too.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    root = os.geteuid() == 0
    spaces = _unshare(plan.writable[0] if plan.writable else "")
    alone = False
    if spaces:
        _go_on_in_child()
        alone = _mount_over(plan)
    _drop_capabilities(keep_file_access=root and spaces != "user")
    landlock = _landlock(plan.writable)
    if plan.confined and not landlock:
        sys.exit("isolation: this process can write into the build cache: run `prebake bake --converted-size 0`")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if plan.memory is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (plan.memory, plan.memory))
    if not spaces and landlock < 4 and _has_network():
        _tell("this system allows neither a network namespace nor Landlock: the worker keeps the network "
              "(in an image build, RUN --network=none takes it away)")  # fmt: skip
    if not alone and not landlock:
        _tell("this system allows neither a process namespace nor Landlock: the worker sees its user's other processes")


def _unshare(writable: str) -> str | None:
    """Enter new namespaces. Returns `root` or `user`, the kind of privilege used, or None if the system forbids both.

    If the folder `writable` is not writable inside the user namespace, the namespace is not used.
    """
    if _LIBC.unshare(_NAMESPACES) == 0:
        return "root"
    trial = os.fork()  # try in a child: a process can't leave a namespace
    if trial == 0:
        os._exit(0 if _unshare_as_user() and _can_write(writable) else 1)
    return "user" if os.waitpid(trial, 0)[1] == 0 and _unshare_as_user() else None


def _unshare_as_user() -> bool:
    uid, gid = os.geteuid(), os.getegid()
    if _LIBC.unshare(_NAMESPACES | _CLONE_NEWUSER) != 0:
        return False
    # Files keep their owners: the single id that may be mapped without privileges is mapped to itself. Root without
    # CAP_SETFCAP can't map any, but still owns its files.
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with suppress(OSError):
            Path(f"/proc/self/{name}").write_text(text, encoding="ascii")
    return True


def _can_write(folder: str) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _go_on_in_child() -> None:
    """Fork, because the new process namespace begins with the child. The parent waits and exits like the child."""
    child = os.fork()
    if child == 0:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status))


def _mount_over(plan: Plan) -> bool:
    """Mount what the new namespaces need. Returns whether /proc shows only this process."""
    # Other mount namespaces must not see these mounts.
    if _LIBC.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None) != 0:
        return False
    kept = []
    for path in filter(None, (*plan.kept, *_imported_from())):
        with suppress(OSError):  # a deleted working directory
            kept.append(Path(path).resolve())
    for home in plan.homes:
        with suppress(OSError):
            _cover_hidden(Path(home).resolve(), kept, plan)
    for covered in map(Path, plan.covered):
        with suppress(OSError):
            _cover(covered, kept if covered.is_dir() else (), plan)
    for hidden in map(Path, plan.hidden):
        with suppress(OSError):
            _cover(hidden, (), plan)
    # Read-only: the kernel applies some of its files (core_pattern) outside of all namespaces.
    flags = _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    return bool(_LIBC.mount(b"proc", b"/proc", b"proc", flags, None) == 0)


def _imported_from() -> Iterable[str]:
    libraries = os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    own = (sys.prefix, sys.base_prefix, sys.exec_prefix, os.environ.get("PYTHONPYCACHEPREFIX", ""))
    return (*sys.path, *libraries, *own)


def _cover_hidden(home: Path, kept: Sequence[Path], plan: Plan) -> None:
    """Cover the folder's hidden entries. If an entry contains a kept path, cover everything else in it.

    A kept path that contains the whole home, such as a working directory, does not make hidden entries visible.
    """
    inside = [path for path in kept if home in path.parents]
    for entry in sorted(home.iterdir()):
        if entry.name.startswith("."):
            with suppress(OSError):
                _cover(entry, inside, plan, within=home)


def _cover(path: Path, kept: Sequence[Path], plan: Plan, *, within: Path | None = None) -> None:
    real = path.resolve(strict=True)
    if within and within not in real.parents:
        return  # a link to another place, perhaps a system folder
    if any(real == keep or real in keep.parents or keep in real.parents for keep in kept):
        if real.is_dir() and not any(real == keep or keep in real.parents for keep in kept):
            for entry in sorted(real.iterdir()):
                with suppress(OSError):
                    _cover(entry, kept, plan, within=real)
        return
    empty = plan.empty_folder if real.is_dir() else plan.empty_file
    _LIBC.mount(os.fsencode(empty), os.fsencode(real), None, _MS_BIND, None)


def _drop_capabilities(*, keep_file_access: bool) -> None:
    """Drop every capability, for this process and its children. Root may keep access to all files."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    kept = 1 << _CAP_DAC_OVERRIDE if keep_file_access else 0
    for capability in range(_CAPABILITIES):
        if not kept >> capability & 1:
            _prctl(_PR_CAPBSET_DROP, capability)
    kept &= _permitted()  # the kernel rejects a set with new capabilities
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    _LIBC.capset(header, struct.pack("=6I", kept, kept, 0, 0, 0, 0))


def _permitted() -> int:
    """The lower 32 bits of this process's permitted capabilities."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    data = ctypes.create_string_buffer(24)
    _LIBC.capget(header, data)
    return int(struct.unpack("=6I", data.raw)[1])


def landlock_version() -> int:
    """The version of Landlock's ABI if the worker uses it, or 0."""
    version = int(_LIBC.syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), _LANDLOCK_CREATE_RULESET_VERSION))
    return version if version >= 2 else 0  # version 1 forbids every rename between folders


def _landlock(writable: Sequence[str] = ()) -> int:
    """Enter a Landlock domain. Returns the version of its ABI, or 0 if it is not available.

    A process in a domain can neither trace processes outside nor read their environment, even as root. Since version 4
    (Linux 6.7) TCP is forbidden, since version 6 also signals and abstract sockets to the outside. With `writable`, it
    can change files below these folders and devices alone (since version 3, Linux 6.2, also truncate), but it can still
    change modes and times elsewhere.
    """
    if not (version := landlock_version()):
        return 0
    changes = _FS_REFER | (_FS_CHANGES if writable else 0) | (_FS_TRUNCATE if writable and version >= 3 else 0)
    network = _NET_BIND_TCP | _NET_CONNECT_TCP if version >= 4 else 0
    scope = _SCOPE_ABSTRACT_UNIX_SOCKET | _SCOPE_SIGNAL if version >= 6 else 0
    attributes = struct.pack("=QQQ", changes | _FS_MAKE_BLOCK, network, scope)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    rules = _LIBC.syscall(_LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(size), 0)
    if rules < 0:
        return 0
    try:
        places = (*writable, *_DEVICES) if writable else ("/",)
        allowed = all(_allow(rules, path, changes & ~_FS_MAKE_BLOCK) for path in places)
        entered = allowed and _LIBC.syscall(_LANDLOCK_RESTRICT_SELF, rules, 0) == 0
    finally:
        os.close(rules)
    return version if entered else 0


def _allow(rules: int, folder: str, access: int) -> bool:
    """Allow this below the folder; returns whether the kernel took the rule."""
    handle = os.open(folder, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = struct.pack("=Qi", access, handle)
        return bool(_LIBC.syscall(_LANDLOCK_ADD_RULE, rules, _LANDLOCK_RULE_PATH_BENEATH, rule, 0) == 0)
    finally:
        os.close(handle)


def _has_network() -> bool:
    try:
        return any(name != "lo" for _, name in socket.if_nameindex())
    except OSError:
        return True


def _prctl(option: int, value: int) -> int:
    zero = ctypes.c_ulong(0)
    return int(_LIBC.prctl(option, ctypes.c_ulong(value), zero, zero, zero))


def _tell(text: str) -> None:
    print(f"isolation: {text}", file=sys.stderr, flush=True)
