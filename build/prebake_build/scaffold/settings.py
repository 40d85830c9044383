"""What `prebake init` knows about a project before it writes: given by options, else found in the project's files."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from packaging.specifiers import InvalidSpecifier, SpecifierSet

from prebake.documents import toml
from prebake.documents.messages import quote, reason
from prebake.errors import ConfigError
from prebake.startup.compiled import LIST, read_file, read_list
from prebake.telemetry.project import read_project
from prebake_build.declared.lock import Lock
from prebake_build.declared.spec import ModelSpec, read_spec
from prebake_build.scaffold import command as commands
from prebake_build.scaffold.command import Command
from prebake_build.scaffold.requirements import Requirements, find_requirements

OLDEST, NEWEST = 10, 14
"""Minor versions of Python 3 for which there is a base image."""

_VERSION = re.compile(r"(?:cpython[-@]?|python)?3\.(\d+)(?:\.\d+)?")
_NAME = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """The options of `prebake init` that decide what it writes."""

    command: tuple[str, ...] = ()
    name: str | None = None
    python: str | None = None
    models: str = "models.toml"
    requirements: str | None = None
    extras: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    package: str | None = None
    port: int | None = None
    ready: str | None = None
    snapshot: bool = False

    @property
    def written(self) -> str:
        """The command line with these options."""
        words = ["prebake", "init"]
        for option in ("name", "python", "models", "requirements", "package", "port", "ready"):
            value = getattr(self, option)
            if value is not None and (option, value) != ("models", "models.toml"):
                words += [f"--{option}", str(value)]
        for option, values in (("--extra", self.extras), ("--group", self.groups)):
            words += [word for value in values for word in (option, value)]
        words += ["--snapshot"] if self.snapshot else []
        return shlex.join([*words, "--", *self.command] if self.command else words)


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Everything that the templates need."""

    options: Options
    """What was given, with the Python version if it is this interpreter's: the same options write the same files."""
    name: str
    """Of the image."""
    version: str
    """Of the project; empty if it has none."""
    python: int
    """Minor version of Python 3."""
    requirements: Requirements
    constraints: str | None
    command: Command
    ready: str | None
    """The path that tells whether the service is ready."""
    models: tuple[ModelSpec, ...]
    checkpoints: str
    """The folder of sources `path:FOLDER/…`."""
    keep: tuple[str, ...] = ()
    """Patterns of files that `prebake slim` leaves in the image."""
    compiled: str | None = None
    """The list of functions that numba compiles in the build, relative to the project."""
    compiles_own: bool = False
    """Whether the list has functions of the project itself."""
    prebake: str = field(default_factory=lambda: version("prebake-build"))
    notes: tuple[str, ...] = ()
    shards: Mapping[str, int] = field(default_factory=dict)
    """Model → files that it was split into, as its lock records them."""


def find_settings(folder: Path, options: Options) -> Settings:
    """What the options say, and what the project's files say about the rest. Raises ConfigError."""
    project = read_project(folder)
    package = _pyproject(folder / options.package) if options.package else {}
    pyproject = _pyproject(folder)
    requirements = find_requirements(
        folder, pyproject, file=options.requirements, extras=options.extras, groups=options.groups
    )
    words = options.command or project.command or commands.from_procfile(folder / "Procfile")
    words = words or commands.from_application(folder, requirements.names)
    command = commands.examine(words, port=options.port or project.port, requirements=requirements.names)
    about = (package or pyproject).get("project", {})
    python = _declared_python(folder, options, package or pyproject)
    if python is None:
        python = sys.version_info.minor
        options = _with_python(options, python)
    models = read_spec(folder / options.models).models
    compiled, own = _compiled(folder, options.models)
    if options.package and not package:
        raise ConfigError(f"--package {options.package}: there is no {folder / options.package / 'pyproject.toml'}")
    return Settings(
        options=options,
        name=_image_name(options.name or about.get("name") or folder.resolve().name),
        version=str(about.get("version", "")),
        python=python,
        requirements=requirements,
        constraints="constraints.txt" if (folder / "constraints.txt").is_file() and requirements.kind != "uv" else None,
        command=command,
        ready=_ready_path(options.ready or project.ready) or command.ready,
        models=models,
        checkpoints=_checkpoints(folder / options.models, models),
        keep=project.keep,
        compiled=compiled,
        compiles_own=own and not options.package,
        notes=(*command.notes, *(_of_snapshot(command.words) if options.snapshot else ())),
        shards=_shards((folder / options.models).with_suffix(".lock")),
    )


def _compiled(folder: Path, models: str) -> tuple[str | None, bool]:
    """The list that `prebake scan` has written beside the models file, and whether it has functions of the project.

    Raises ConfigError if it is malformed.
    """
    found = PurePosixPath(models).with_name(LIST)
    entries = read_list(read_file(folder / found), str(found))
    return str(found) if entries else None, any(entry.own for entry in entries)


def _of_snapshot(words: tuple[str, ...]) -> Iterator[str]:
    """What refuses the dump, as far as the command tells."""
    several = next((word for word in words if word.partition("=")[0] in ("--workers", "--reload")), None)
    if several:
        yield (f"a snapshot holds one process, so its build refuses {several}: leave it out, and start more "
               "containers, which share the snapshot's memory")  # fmt: skip


def _shards(path: Path) -> dict[str, int]:
    locked = Lock.read(path).models if path.is_file() else {}
    return {name: len(model.baked.shard_digests) for name, model in locked.items()
            if model.baked and model.baked.shard_digests}  # fmt: skip


def _pyproject(folder: Path) -> Mapping[str, Any]:
    path = folder / "pyproject.toml"
    try:
        return toml.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read it: {reason(error)}") from error
    except toml.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from error


def _with_python(options: Options, minor: int) -> Options:
    from dataclasses import replace

    return replace(options, python=f"3.{minor}")


def _declared_python(folder: Path, options: Options, pyproject: Mapping[str, Any]) -> int | None:
    """The minor version of --python, `.python-version` or `requires-python`; None if nothing says it."""
    if options.python is not None:
        return _minor(options.python, "--python")
    file = folder / ".python-version"
    if file.is_file():
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
        return _minor(next((line for line in lines if line and not line.startswith("#")), ""), str(file))
    required = pyproject.get("project", {}).get("requires-python")
    if required is None:
        return None
    where = f"{folder / 'pyproject.toml'}: project.requires-python"
    try:
        specifiers = SpecifierSet(required)
    except InvalidSpecifier as error:
        raise ConfigError(f"{where}: {error}") from error
    fitting = [minor for minor in range(OLDEST, NEWEST + 1) if specifiers.contains(f"3.{minor}.99")]
    if not fitting:
        raise ConfigError(f"{where}: {quote(required)} allows no version from 3.{OLDEST} to 3.{NEWEST}")
    return None if sys.version_info.minor in fitting else fitting[0]


def _minor(text: str, where: str) -> int:
    match = _VERSION.fullmatch(text)
    if match is None or not OLDEST <= int(match[1]) <= NEWEST:
        raise ConfigError(f"{where}: {quote(text)} is not a version of Python from 3.{OLDEST} to 3.{NEWEST}")
    return int(match[1])


def _image_name(name: str) -> str:
    found = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") if not _NAME.fullmatch(name) else name
    if not found:
        raise ConfigError(f"{quote(name)} can't be the image's name: give one with --name")
    return found


def _ready_path(ready: str | None) -> str | None:
    """The path of a readiness URL; None if there is none, or if it is on another host."""
    if ready is None or ready.startswith("/"):
        return ready
    address = urlsplit(ready)
    return (address.path or "/") if address.hostname in ("127.0.0.1", "localhost", "::1") else None


def _checkpoints(path: Path, models: Sequence[ModelSpec]) -> str:
    """The folder that all `path:` sources share, relative to the models file; `checkpoints` if there are none."""
    folders = {}
    for model in models:
        scheme, _, rest = model.source.partition(":")
        if scheme != "path" or rest.startswith("/checkpoints/"):
            continue
        parts = Path(rest).parts
        if Path(rest).is_absolute() or ".." in parts or not parts:
            raise ConfigError(
                f"{path}: models.{model.name}.source: the image build can't read {quote(model.source)}: put it into a "
                f'folder beside {path.name}, such as "path:checkpoints/{model.name}"'
            )
        folders[parts[0]] = model.name
    if len(folders) > 1:
        raise ConfigError(f"{path}: sources of the form path:… are in {', '.join(sorted(folders))}: the image build "
                          "takes one folder: put them all into it")  # fmt: skip
    return next(iter(folders), "checkpoints")
