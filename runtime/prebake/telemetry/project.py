"""What a project says about its service: `prebake.toml`, or `[tool.prebake]` in `pyproject.toml`.

Every key is optional; options of the commands take precedence::

    command = "uvicorn app:app --port 8000"  # or a list of strings
    ready = "/health"                        # answers with a status below 400 once the service is ready; or a URL
    port = 8000
    budget = "budget.toml"                   # or a table with the same keys
    keep = ["torch/include/*"]               # files in site-packages that `prebake slim` leaves in the image

    [[requests]]
    path = "/caption"
    method = "POST"                          # default: POST with a file, else GET
    file = "cat.png"                         # the body, relative to this file's folder
    type = "image/png"                       # its content type; default: by the file's name

Instead of a table, a request may be one line, as `--request` takes it: `"/health"`, `"POST /caption @cat.png"`, or
`"module:function"`, which is called with the service's address.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from prebake.documents import toml
from prebake.documents.messages import describe, quote, reason
from prebake.documents.table import Table
from prebake.errors import ConfigError
from prebake.telemetry.budget import Budget

FILE: Final = "prebake.toml"
PYPROJECT: Final = "pyproject.toml"

_METHOD = re.compile(r"[A-Z]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class DeclaredRequest:
    """One entry of `requests`; `prebake.watching.questions` makes the request."""

    method: str = "GET"
    path: str = "/"
    file: Path | None = None
    """The file with the body."""
    type: str | None = None
    """The body's content type; None if it is not declared."""
    line: str | None = None
    """The request in one line, as `--request` takes it; the other fields have no meaning then."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Project:
    """The settings of one project; `read_project` reads them."""

    folder: Path
    path: Path | None = None
    """The file that was read, or None if the project has none."""
    command: tuple[str, ...] | None = None
    """Program and arguments."""
    ready: str | None = None
    """A URL, or a path on the service's port."""
    port: int | None = None
    requests: tuple[DeclaredRequest, ...] = ()
    budget: Budget | None = None
    keep: tuple[str, ...] = ()
    """Patterns of files that `prebake slim` leaves in the image."""


def read_project(folder: Path) -> Project:
    """The settings of the project in this folder; without any key if neither file declares them.

    Raises ConfigError that names the file and the path in it, also if both files declare settings.
    """
    own = _document(folder / FILE)
    pyproject = _document(folder / PYPROJECT)
    tool = pyproject.get("tool", {}) if pyproject else {}
    nested = tool.get("prebake") if isinstance(tool, dict) else None
    if own is not None and nested is not None:
        raise ConfigError(
            f"{folder / FILE} and [tool.prebake] in {folder / PYPROJECT} both have settings: keep one of them"
        )
    if own is not None:
        return _read(Table(own, str(folder / FILE), ConfigError), folder, folder / FILE)
    if nested is not None:
        path = folder / PYPROJECT
        return _read(Table(nested, f"{path}: tool.prebake", ConfigError), folder, path)
    return Project(folder=folder)


def _document(path: Path) -> dict[str, Any] | None:
    """The TOML file, or None if there is none."""
    try:
        return toml.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read it: {reason(error)}") from error
    except toml.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from error


def _read(table: Table, folder: Path, path: Path) -> Project:
    project = Project(
        folder=folder,
        path=path,
        command=_command(table),
        ready=_ready(table),
        port=_port(table),
        requests=_requests(table, folder),
        budget=_budget(table, folder),
        keep=_keep(table),
    )
    table.finish()
    return project


def _command(table: Table) -> tuple[str, ...] | None:
    value = table.raw("command")
    if value is None:
        return None
    if isinstance(value, str):
        try:
            words = tuple(shlex.split(value))
        except ValueError as error:
            raise table.fail("command", f"{quote(value)} can't be split into words: {error}") from error
    elif isinstance(value, list):
        words = table.strings("command")
    else:
        raise table.fail("command", f"expected a string or a list of strings, found {describe(value)}")
    if not words or not words[0]:
        raise table.fail("command", 'is empty (expected a program and its arguments, such as "uvicorn app:app")')
    return words


def _ready(table: Table) -> str | None:
    value = table.maybe("ready", str)
    if value is not None and not re.fullmatch(r"(/|https?://[^/\s])\S*", value):
        raise table.fail("ready", f'{quote(value)} is neither a path such as "/health" nor a URL that begins with http')
    return value


def _port(table: Table) -> int | None:
    value = table.maybe("port", int)
    if value is not None and not 1 <= value <= 65535:
        raise table.fail("port", f"{value} is not between 1 and 65535")
    return value


def _requests(table: Table, folder: Path) -> tuple[DeclaredRequest, ...]:
    return tuple(
        _request(entry, Table({} if isinstance(entry, str) else entry, table.at(f"requests[{number}]"), ConfigError),
                 folder)
        for number, entry in enumerate(table.take("requests", list, []))
    )  # fmt: skip


def _request(entry: object, table: Table, folder: Path) -> DeclaredRequest:
    if isinstance(entry, str):
        return DeclaredRequest(line=entry)
    file = table.maybe("file", str)
    request = DeclaredRequest(
        path=table.take("path", str),
        method=table.take("method", str, "GET" if file is None else "POST"),
        file=None if file is None else folder / file,
        type=table.maybe("type", str),
    )
    table.finish()
    if not request.path.startswith("/"):
        raise table.fail("path", f"{quote(request.path)} does not begin with /")
    if not _METHOD.fullmatch(request.method):
        raise table.fail("method", f'{quote(request.method)} is not an HTTP method such as "POST"')
    if request.type is not None and file is None:
        raise table.fail("type", "is the content type of a file, but there is no `file`")
    return request


def _keep(table: Table) -> tuple[str, ...]:
    patterns = table.strings("keep", [])
    for number, pattern in enumerate(patterns):
        if not re.fullmatch(r"[^\s\"\\$%]+", pattern):
            raise table.fail(f"keep[{number}]", f'{quote(pattern)} is no pattern of paths such as "torch/include/*"')
    return patterns


def _budget(table: Table, folder: Path) -> Budget | None:
    value = table.raw("budget")
    if value is None:
        return None
    if isinstance(value, str):
        return Budget.read(folder / value)
    return Budget.from_table(table.table("budget"))
