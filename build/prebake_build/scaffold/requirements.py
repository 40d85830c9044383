"""Finds what a project requires: `uv.lock`, `requirements.txt`, or the dependencies in `pyproject.toml`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from prebake.documents.messages import nearest, quote, reason
from prebake.errors import ConfigError

_OTHERS = {
    "poetry.lock": "poetry export --output requirements.txt",
    "pdm.lock": "pdm export --output requirements.txt",
    "Pipfile.lock": "pipenv requirements > requirements.txt",
    "environment.yml": "write requirements.txt with the packages of its pip section",
}
"""Files of other tools → what turns them into requirements.txt."""
_COMMENT = re.compile(r"(^|\s)#.*$")


@dataclass(frozen=True, kw_only=True, slots=True)
class Requirements:
    """Where the image's packages come from."""

    kind: Literal["pip", "pyproject", "uv"]
    files: tuple[str, ...]
    """What the install needs, relative to the project; the first is the one that is installed."""
    names: frozenset[str]
    """Normalized names of the packages that are required directly (uv: of all)."""
    extras: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()


def find_requirements(
    folder: Path, pyproject: Mapping[str, Any], *, file: str | None, extras: Sequence[str], groups: Sequence[str]
) -> Requirements:
    """The project's requirements: the named file, else `uv.lock`, else `requirements.txt`, else `pyproject.toml`.

    Raises ConfigError if there are none, or if they can't be installed in an image.
    """
    if file is None and (folder / "uv.lock").is_file() and pyproject:
        _declared(folder, pyproject, extras, groups)  # refuses names that are not there
        names = frozenset(map(str, re.findall(r'^name = "([^"]+)"$', _text(folder / "uv.lock"), re.MULTILINE)))
        return Requirements(kind="uv", files=("uv.lock", "pyproject.toml"), names=names,
                            extras=tuple(extras), groups=tuple(groups))  # fmt: skip
    if file is None and not (folder / "requirements.txt").is_file() and "project" in pyproject:
        found = _declared(folder, pyproject, extras, groups)
        if found:
            return Requirements(kind="pyproject", files=("pyproject.toml",), names=frozenset(found),
                                extras=tuple(extras), groups=tuple(groups))  # fmt: skip
    if extras or groups:
        raise ConfigError(f"{folder}: --extra and --group need dependencies in pyproject.toml, but they come from "
                          f"{file or 'requirements.txt'}")  # fmt: skip
    if file is None and not (folder / "requirements.txt").is_file():
        raise ConfigError(_nothing(folder))
    files: dict[str, None] = {}
    names = frozenset(_names(folder, file or "requirements.txt", files))
    return Requirements(kind="pip", files=tuple(files), names=names)


def _nothing(folder: Path) -> str:
    for name, way in _OTHERS.items():
        if (folder / name).is_file():
            return f"{folder}: {name} can't be installed in the image: {way}"
    return (
        f"{folder}: nothing says which packages the service needs (expected requirements.txt, uv.lock, or dependencies "
        "in pyproject.toml): list what it imports in requirements.txt, one a line; `pip freeze` lists what is installed"
    )


def _declared(folder: Path, pyproject: Mapping[str, Any], extras: Sequence[str], groups: Sequence[str]) -> list[str]:
    """Names of the dependencies in `pyproject.toml`, with those of the extras and groups."""
    path = folder / "pyproject.toml"
    project = pyproject.get("project", {})
    if "dependencies" in project.get("dynamic", ()):
        raise ConfigError(f"{path}: project.dynamic: the dependencies are known to the build alone: write them to "
                          "requirements.txt, or name their file with --requirements")  # fmt: skip
    found = list(project.get("dependencies", ()))
    for key, tables, wanted in (
        ("project.optional-dependencies", project.get("optional-dependencies", {}), extras),
        ("dependency-groups", pyproject.get("dependency-groups", {}), groups),
    ):
        for name in wanted:
            if name not in tables:
                raise ConfigError(f"{path}: {key}: there is no {quote(name)}{nearest(name, list(tables))}")
            found += tables[name]
    for entry in found:
        if not isinstance(entry, str):
            raise ConfigError(f"{path}: dependency-groups: init can't follow {{include-group = …}}: name each group "
                              "with --group, or lock them with uv")  # fmt: skip
    return [_name(entry, str(path)) for entry in found]


def _names(folder: Path, name: str, files: dict[str, None]) -> Iterator[str]:
    """Names in a requirements file and in those that it includes; `files` collects all of them."""
    if name in files:
        return
    files[name] = None
    if not _is_inside(name):
        raise ConfigError(f"{folder / name}: is outside the project's folder, which is all that the build can read")
    for number, line in enumerate(_text(folder / name).replace("\\\n", " ").splitlines(), 1):
        line = _COMMENT.sub("", line).strip()
        option, _, value = line.replace("=", " ", 1).partition(" ") if line.startswith("-") else ("", "", "")
        where = f"{folder / name}: line {number}"
        if option in ("-r", "--requirement", "-c", "--constraint"):
            yield from _names(folder, os.path.normpath(Path(name).parent / value.strip()), files)
        elif option in ("-e", "--editable") or line.startswith((".", "/", "file:")):
            raise ConfigError(
                f"{where}: {quote(line)} is a folder, and this step has no code: init copies the project's code into "
                "the image (or installs it with --package): remove the line"
            )
        elif line and not line.startswith("-"):
            yield _name(line.partition(" --")[0], where)


def _name(requirement: str, where: str) -> str:
    try:
        return canonicalize_name(Requirement(requirement).name)
    except InvalidRequirement as error:
        if re.match(r"(git\+)?https?://", requirement):
            return requirement
        why = str(error).splitlines()[0]
        raise ConfigError(f"{where}: {quote(requirement)} is not a requirement: {why}") from error


def _is_inside(name: str) -> bool:
    return not Path(name).is_absolute() and ".." not in Path(name).parts


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read it: {reason(error)}") from error
