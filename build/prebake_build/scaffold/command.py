"""What a service's command says: its port, whether it serves at all, and whether others can reach it."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from prebake.documents.messages import quote, reason
from prebake.errors import ConfigError

DEFAULT_PORT = 8000
HOW = "write it after --: prebake init -- uvicorn app:app"


@dataclass(frozen=True, slots=True)
class Server:
    """A program that serves."""

    port: int = DEFAULT_PORT
    """Where it listens if its command does not say."""
    reachable: tuple[str, ...] = ()
    """Arguments that make it reachable from outside its container, if its own default is the loopback interface."""
    addresses: tuple[str, ...] = ()
    """Options that set the address instead."""
    ready: str | None = None
    """The path that tells whether it is ready."""


ANYWHERE = "0.0.0.0"  # noqa: S104  # in a container; what is published is decided outside

SERVERS = {
    "uvicorn": Server(reachable=("--host", ANYWHERE), addresses=("--host", "--uds", "--fd")),
    "granian": Server(reachable=("--host", ANYWHERE), addresses=("--host", "--uds")),
    "gunicorn": Server(reachable=("--bind", f"{ANYWHERE}:8000"), addresses=("-b", "--bind", "-c", "--config")),
    "hypercorn": Server(reachable=("--bind", f"{ANYWHERE}:8000"), addresses=("-b", "--bind", "-c", "--config")),
    "daphne": Server(reachable=("-b", ANYWHERE), addresses=("-b", "--bind", "-u", "-e", "--fd")),
    "flask": Server(port=5000, reachable=("--host", ANYWHERE), addresses=("-h", "--host")),
    "fastapi": Server(),
    "waitress-serve": Server(port=8080),
    "streamlit": Server(port=8501),
    "gradio": Server(port=7860),
    "bentoml": Server(port=3000),
    "prebake": Server(reachable=("--host", ANYWHERE), addresses=("--host",), ready="/readyz"),
}
FRAMEWORKS = {
    "fastapi": DEFAULT_PORT, "starlette": DEFAULT_PORT, "flask": DEFAULT_PORT, "django": DEFAULT_PORT,
    "litserve": DEFAULT_PORT, "litestar": DEFAULT_PORT, "sanic": DEFAULT_PORT, "quart": DEFAULT_PORT,
    "bottle": DEFAULT_PORT, "falcon": DEFAULT_PORT, "waitress": DEFAULT_PORT, "uvicorn": DEFAULT_PORT,
    "gunicorn": DEFAULT_PORT, "gradio": 7860, "streamlit": 8501, "bentoml": 3000,
}  # fmt: skip
"""Packages that serve → their usual port. The project serves if its requirements name one."""

_PORTS = ("--port", "-p", "--server.port")
_BINDS = ("-b", "--bind")
_SHELL = re.compile(r"[$`|&;<>]")
_PORT = re.compile(r"\$(?:PORT\b|\{PORT(?::-(\d+))?\})")
_ENTRY = re.compile(r"([A-Za-z0-9_-]+)\s*:\s*(.+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """A command, and what init found out about it."""

    words: tuple[str, ...]
    """With the arguments that make it reachable."""
    port: int | None
    """None if it serves nothing."""
    ready: str | None = None
    """The path of its program that tells whether it is ready."""
    notes: tuple[str, ...] = ()
    """What the user should know, one sentence each."""


def examine(words: Sequence[str], *, port: int | None, requirements: Collection[str]) -> Command:
    """The command's port: `port` if it is given, else that of its options, else the usual one of its program.

    `requirements` are the normalized names of the project's packages. Raises ConfigError for a port out of range.
    """
    program, server = _server(words)
    said = _declared_port(words)
    if server is None:
        ports = {FRAMEWORKS[name] for name in requirements if name in FRAMEWORKS}
        usual = min(ports, key=lambda port: port == DEFAULT_PORT, default=None)  # gradio brings fastapi along
        return Command(words=tuple(words), port=port or said or usual)
    words, notes = _reachable(words, program, server)
    return Command(words=words, port=port or said or server.port, ready=server.ready, notes=notes)


def _server(words: Sequence[str]) -> tuple[str, Server | None]:
    """The program, and what is known about it. `python -m uvicorn` is uvicorn."""
    program = Path(words[0]).name
    if re.fullmatch(r"python[0-9.]*", program) and "-m" in words[:-1]:
        program = words[words.index("-m") + 1]
    if program == "prebake" and "serve" not in words:
        return program, None
    return program, SERVERS.get(program)


def _reachable(words: Sequence[str], program: str, server: Server) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if server.reachable and not any(
        word == option or word.startswith(f"{option}=") for word in words for option in server.addresses
    ):
        added = _with_port(server.reachable, _declared_port(words))
        return (*words, *added), (f"added {' '.join(added)}: by default, {program} can't be reached from outside",)
    for option, value in pairwise(words):
        if option in server.addresses and value.startswith(("127.0.0.1", "localhost")):
            return tuple(words), (f"{option} {value} can't be reached from outside the container: 0.0.0.0 can",)
    return tuple(words), ()


def _with_port(added: tuple[str, ...], port: int | None) -> tuple[str, ...]:
    return added if port is None else tuple(word.replace(":8000", f":{port}") for word in added)


def _declared_port(words: Sequence[str]) -> int | None:
    """The port in --port, -p, -b or --bind; None without one, or for a socket file."""
    for number, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option not in _PORTS + _BINDS:
            continue
        if not equals:
            value = words[number + 1] if number + 1 < len(words) else ""
        digits = value.rpartition(":")[2] if option in _BINDS else value
        if digits.isdecimal():
            if not 1 <= int(digits) <= 65535:
                raise ConfigError(f"{option} {value}: {digits} is not a port between 1 and 65535")
            return int(digits)
    return None


def from_procfile(path: Path) -> tuple[str, ...] | None:
    """The command of a Procfile: its process `web`, or the only one; None if there is no file.

    `$PORT` becomes its default, or 8000. Raises ConfigError for several processes without `web`, and for a command that
    needs a shell.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read it: {reason(error)}") from error
    found = {match[1]: match[2] for line in lines if (match := _ENTRY.fullmatch(line.strip()))}
    name = "web" if "web" in found else next(iter(found), None)
    if name is None or (name != "web" and len(found) > 1):
        listed = ", ".join(sorted(found)) or "none"
        raise ConfigError(f"{path}: has no process `web` to start in the image (it has {listed}): {HOW}")
    line = _PORT.sub(lambda match: match[1] or str(DEFAULT_PORT), found[name])
    if _SHELL.search(line):
        raise ConfigError(f"{path}: {name}: {quote(line)} needs a shell, which the image does not start: {HOW}")
    return tuple(shlex.split(line))


def from_application(folder: Path, requirements: Collection[str]) -> tuple[str, ...]:
    """The command that starts the folder's only application file.

    That is one of app.py, main.py, server.py and worker.py, and either has an ASGI application and uvicorn is required,
    or is a script. Raises ConfigError if there is no such file, or more than one.
    """
    found = [path for name in ("app", "main", "server", "worker") if (path := folder / f"{name}.py").is_file()]
    if len(found) == 1:
        path = found[0]
        try:
            module = ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError) as error:
            raise ConfigError(f"{path}: cannot read this program: {reason(error)}") from error
        applications = [name for name in map(_application, module.body) if name]
        if len(applications) == 1 and "uvicorn" in requirements:
            return ("uvicorn", f"{path.stem}:{applications[0]}")
        if any(isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) for node in module.body):
            return ("python", path.name)
    seen = f"found {', '.join(path.name for path in found)}" if found else "found no app.py, main.py or Procfile"
    raise ConfigError(f"{folder}: which command starts the service? ({seen}) {HOW[0].upper()}{HOW[1:]}, or as "
                      '`command = "…"` in prebake.toml')  # fmt: skip


def _application(node: ast.stmt) -> str | None:
    """`app` of the statement `app = FastAPI(…)`."""
    if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
        call = node.value
        if isinstance(call, ast.Call) and ast.unparse(call.func).rpartition(".")[2] in ("FastAPI", "Starlette"):
            return node.targets[0].id
    return None
