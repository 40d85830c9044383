"""Code that runs in the worker finds no token, no credentials, no other process and no network."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.baking import TESTS, declare
from helpers.spies import PREFIX, SECRET
from prebake.errors import ConfigError
from prebake_build.baking import isolation, memory, sandbox

UNPRIVILEGED = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
NO_NAMESPACES = (
    "unshare", "--user", "--map-root-user", "sh", "-c",
    'for kind in user net pid mnt ipc; do echo 0 >/proc/sys/user/max_${kind}_namespaces || exit 9; done; exec "$@"',
    "-",
)  # fmt: skip
"""A system that refuses namespaces, as Docker's and BuildKit's default profile do."""


@pytest.fixture
def server() -> Iterator[socket.socket]:
    """A listening socket that nobody accepts from: whoever connected waits in its queue."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        yield listening


def can_run(*prefix: str) -> bool:
    return bool(shutil.which(prefix[0])) and subprocess.run([*prefix, "true"], capture_output=True).returncode == 0


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home folder with credentials in it."""
    for name in (".aws/credentials", ".cache/huggingface/token", ".netrc"):
        (tmp_path / "home" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "home" / name).write_text(SECRET)
    (tmp_path / "named-by-a-variable").write_text(SECRET)
    return tmp_path / "home"


def command(linear: Path) -> list[str]:
    return [sys.executable, "-m", "prebake", "bake", "--models", str(linear), "--output", str(linear.parent / "out")]


def environment(**changes: str) -> dict[str, str]:
    """This process's environment, in which the worker can import `spies`."""
    path = os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, **changes}


def baked(linear: Path, lines: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """A bake of model `m`, declared by these lines of models.toml, in a process of its own."""
    declare(linear.parent, f'[models.m]\nsource = "path:c"\n{lines}\n')
    return subprocess.run(
        command(linear), env=environment(**changes), capture_output=True, text=True, check=False, cwd=linear.parent
    )


def spied(linear: Path, home: Path, port: int, *prefix: str) -> list[str]:
    """Where a checkpoint's code finds secrets, in a bake that runs behind `prefix`."""
    files = [str(path) for path in (*home.rglob("*"), linear.parent / "named-by-a-variable") if path.is_file()]
    declare(linear.parent, f'[models.m]\nsource = "path:c"\nclass = "torch:helpers.spies:look"\n'
            f"arguments = {{ port = {port}, files = {json.dumps(files)} }}\n")  # fmt: skip
    planted = dict.fromkeys(("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MY_PASSWORD"), SECRET)
    done = subprocess.run(
        [*prefix, *command(linear)], capture_output=True, text=True, check=False, cwd=linear.parent,
        env=environment(
            HOME=str(home), PREBAKE_CACHE=str(home / ".cache" / "prebake"),  # in the home, beside what is hidden
            HF_TOKEN_PATH=str(linear.parent / "named-by-a-variable"), **planted,
        ),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    looked = [line.removeprefix(PREFIX) for line in done.stderr.splitlines() if line.startswith(PREFIX)]
    assert looked, done.stderr
    return sorted({place for line in looked for place in json.loads(line)})


def connected(server: socket.socket) -> bool:
    try:
        server.accept()[0].close()
    except BlockingIOError:
        return False
    return True


@pytest.mark.parametrize("prefix", [(), UNPRIVILEGED], ids=["this user", "no privileges"])
def test_a_checkpoint_that_looks_for_a_token_finds_none(
    linear: Path, home: Path, server: socket.socket, prefix: tuple[str, ...]
) -> None:
    if prefix and (os.geteuid() != 0 or not can_run(*prefix)):
        pytest.skip("not root, so `this user` is without privileges; or no setpriv")
    if not can_run("unshare", "--user", "--pid", "--net", "--mount", "--fork", "--mount-proc"):
        pytest.skip("namespaces are refused here")
    assert spied(linear, home, server.getsockname()[1], *prefix) == []
    assert not connected(server)


def test_without_namespaces_it_finds_neither_process_nor_network(
    linear: Path, home: Path, server: socket.socket
) -> None:
    if not can_run(*NO_NAMESPACES):
        pytest.skip("no user namespace in which to forbid namespaces")
    if landlock_version() < 4:
        pytest.skip("this kernel's Landlock knows no network")
    found = spied(linear, home, server.getsockname()[1], *NO_NAMESPACES)
    assert [place for place in found if not place.startswith(str(linear.parent))] == []
    assert not connected(server)


def test_a_worker_that_crashes_in_its_namespace_is_told(linear: Path) -> None:
    done = baked(linear, 'class = "torch:helpers.spies:crash"')
    assert done.returncode == 1
    assert "models.m: the worker ended with signal 11; see its messages above\n" in done.stderr


def test_a_worker_ends_with_the_bake_that_started_it(linear: Path) -> None:
    declare(linear.parent, '[models.m]\nsource = "path:c"\nclass = "torch:helpers.spies:wait"\n')
    with subprocess.Popen(command(linear), env=environment(), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert PREFIX + "waiting\n" in iter(process.stderr.readline, "")
        process.kill()
        assert process.stderr.read() == ""  # the worker held the other end


@pytest.mark.parametrize("namespaces", [True, False], ids=["namespaces", "none"])
def test_a_checkpoint_that_writes_reaches_its_own_folders_alone(linear: Path, namespaces: bool) -> None:
    if not landlock_version():
        pytest.skip("this kernel has no Landlock")
    prefix = () if namespaces else NO_NAMESPACES
    if not can_run(*(prefix or ("unshare", "--user", "--pid", "--mount"))):
        pytest.skip("namespaces are refused here, or there is none in which to forbid them")
    cache = linear.parent / "cache"
    folders = [linear.parent, cache / "checkpoints", cache / "converted", cache / "converted" / "0" / "files"]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "there").write_text("")
    declare(linear.parent, '[models.m]\nsource = "path:c"\nclass = "torch:helpers.spies:write"\n'
            f"arguments = {{ folders = {json.dumps([str(folder) for folder in folders])} }}\n")  # fmt: skip
    done = subprocess.run([*prefix, *command(linear)], env=environment(PREBAKE_CACHE=str(cache)), text=True,
                          cwd=linear.parent, capture_output=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    # the factory runs more than once; converted models are out of sight, where mounts are allowed
    seen = folders[:2] if namespaces else folders
    (found,) = {line.removeprefix(PREFIX) for line in done.stderr.splitlines() if line.startswith(PREFIX)}
    assert json.loads(found) == ["make HOME", "make TMPDIR", *(f"see {folder}" for folder in seen)]
    assert all((folder / "there").exists() for folder in folders)


def test_a_worker_that_could_change_converted_models_ends() -> None:
    code = ("from prebake_build.baking import sandbox; sandbox._landlock = lambda writable: 0; "
            "sandbox.enter(sandbox.Plan(writable=('/tmp',), confined=True))")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        1, "isolation: this process can write into the build cache: run `prebake bake --converted-size 0`\n"
    )  # fmt: skip


# --- layer by layer ----------------------------------------------------------------------------------------------

CHILD = """
import os, socket, sys
from prebake_build.baking import sandbox
{parent}
child = os.fork()
if child:
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
{layer}
def tries(action):
    try:
        action()
        return "done"
    except OSError as error:
        return type(error).__name__
print(tries(lambda: open(f"/proc/{{os.getppid()}}/environ").read()),
      tries(lambda: socket.create_connection(("127.0.0.1", int(sys.argv[1])), 5)))
"""


def after(server: socket.socket, child: str = "", parent: str = "", *, root: bool = True) -> list[str]:
    """What becomes of reading the parent's environment, and of connecting, after a line of code in either process.

    `root=False`: both without privileges, though this user may be root.
    """
    prefix = UNPRIVILEGED if os.geteuid() == 0 and not root else ()
    if prefix and not can_run(*prefix):
        pytest.skip("root without setpriv cannot lay its privileges down")
    code = CHILD.format(layer=child, parent=parent)
    command = [*prefix, sys.executable, "-c", code, str(server.getsockname()[1])]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def landlock_version() -> int:
    enter = "sandbox._drop_capabilities(keep_file_access=True); print(sandbox._landlock())"
    code = f"from prebake_build.baking import sandbox; {enter}"
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize("root", [True, False])
def test_with_no_layer_both_succeed(server: socket.socket, root: bool) -> None:
    assert after(server, root=root) == ["done", "done"]


def test_landlock_keeps_from_other_processes_and_from_tcp(server: socket.socket) -> None:
    if landlock_version() < 4:
        pytest.skip("this kernel's Landlock knows no network")
    layer = "sandbox._prctl(sandbox._PR_SET_NO_NEW_PRIVS, 1); sandbox._landlock()"
    assert after(server, layer, root=False) == ["PermissionError", "PermissionError"]


def test_root_without_its_capabilities_cannot_read_the_environment_of_a_process_with_them(
    server: socket.socket,
) -> None:
    if os.geteuid() != 0 or not sandbox._permitted() & ~2:
        pytest.skip("no root with capabilities")
    assert after(server, "sandbox._drop_capabilities(keep_file_access=True)") == ["PermissionError", "done"]


def test_without_privileges_a_process_that_is_not_dumpable_cannot_be_read(server: socket.socket) -> None:
    assert after(server, parent="sandbox._prctl(4, 0)", root=False) == ["PermissionError", "done"]


SCRUBBED = """
import ctypes, json, os
from pathlib import Path
from prebake_build.baking import isolation
libc = ctypes.CDLL(None)
libc.getenv.restype = ctypes.c_char_p
before = libc.prctl(3, 0, 0, 0, 0)
with isolation._unreadable():
    shown = Path("/proc/self/environ").read_bytes()
    print(json.dumps([os.environ["HF_TOKEN"], libc.getenv(b"HF_TOKEN").decode(), os.environ["HF_TOKEN"] in
                      shown.decode(), b"PATH=" + os.environb[b"PATH"] in shown.split(b"\\0"),
                      before, libc.prctl(3, 0, 0, 0, 0)]))
print(libc.prctl(3, 0, 0, 0, 0))
"""


def test_the_token_leaves_what_the_kernel_shows_of_the_parent_and_stays_for_its_next_fetch() -> None:
    environment = os.environ | {"HF_TOKEN": SECRET}
    done = subprocess.run([sys.executable, "-c", SCRUBBED], env=environment, capture_output=True, text=True, check=True)
    inside, afterwards = done.stdout.splitlines()
    assert json.loads(inside) == [SECRET, SECRET, False, True, 1, 0]
    assert afterwards == "1"


def test_the_environment_is_an_allow_list_with_a_home_of_its_own() -> None:
    allowed = {"PATH": "/bin", "LC_ALL": "C", "PYTHONPATH": "x", "OMP_NUM_THREADS": "2", "PREBAKE_TIERS": "mapped"}
    withheld = dict.fromkeys(("HF_TOKEN", "HF_ENDPOINT", "https_proxy", "AWS_PROFILE", "SSH_AUTH_SOCK", "XDG_DATA_HOME",
                              "HUGGING_FACE_HUB_TOKEN", "PYTHONSTARTUP"), SECRET)  # fmt: skip
    found = isolation.environment({**allowed, **withheld, "HOME": "/root", "MINE": "1"}, "/empty")
    found.pop("PYTHONUSERBASE", None)
    assert found == {**allowed, "HOME": "/empty"}


def test_a_variable_is_passed_where_the_user_names_it() -> None:
    found = isolation.environment({"PREBAKE_WORKER_ENV": "MINE, YOURS", "MINE": "1", "THEIRS": "2"}, "/empty")
    assert (found["MINE"], "THEIRS" in found, "YOURS" in found) == ("1", False, False)


# --- memory ------------------------------------------------------------------------------------------------------


def test_a_worker_that_allocates_more_than_its_limit_says_so(linear: Path) -> None:
    lines = 'class = "torch:helpers.spies:large"\narguments = { gigabytes = 64 }'
    done = baked(linear, lines, PREBAKE_WORKER_MEMORY="4000000000")
    assert done.returncode == 2
    assert done.stderr.endswith(
        " (the worker's memory is limited to 4,000,000,000 bytes: the available memory and room for mapped files; "
        "PREBAKE_WORKER_MEMORY=BYTES sets another limit, 0 means no limit)\n"
    )


def test_the_limit_is_what_is_available_and_room_for_mappings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(1000))
    monkeypatch.setattr(memory, "free_memory", lambda: 5000)
    assert memory.limit(tmp_path) == 5000 + 8 * 1000 + (1 << 30) + (os.cpu_count() or 1) * (64 << 20)
    monkeypatch.setenv("PREBAKE_WORKER_MEMORY", "7")
    assert memory.limit(tmp_path) == 7
    monkeypatch.setenv("PREBAKE_WORKER_MEMORY", "0")
    assert memory.limit(tmp_path) is None
    monkeypatch.setenv("PREBAKE_WORKER_MEMORY", "much")
    with pytest.raises(ConfigError) as caught:
        memory.limit(tmp_path)
    assert str(caught.value) == 'PREBAKE_WORKER_MEMORY: "much" is not a number of bytes (0: no limit)'


def test_the_numbers_of_a_domain_fit_this_kernel() -> None:
    """A ruleset that the kernel refuses would leave Landlock out without a word."""
    version = ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), 1)
    assert landlock_version() == (version if version >= 2 else 0)
