"""Functions that numba compiles, compiled once in an image's build.

numba keeps what it compiles of functions with `cache=True` in the folder `NUMBA_CACHE_DIR`. In a container that folder
is empty, so each start compiles anew: `import librosa.util.utils` takes 8 s instead of 1. An image has these files in
`FOLDER`, where numba cannot use them: it needs a folder that it can write to. `use` puts links to them into the folder
that numba uses. numba itself stays as it is: it checks its version, the function's source and the processor of each
file, compiles what does not fit, and replaces the links of files that it writes.

The files are code (pickles, and machine code), so they are used from `FOLDER` alone, if root owns them and nobody else
can write to them, as with the packages beside them.

`numba.txt` lists what is compiled, one entry a line, as `prebake scan` saw it::

    librosa.util.utils                                              # at the module's import
    librosa.sequence:_viterbi(Array(float32, 2, 'F', False, aligned=True), …)      # for these types of its arguments
    ./filters:smooth(Array(float64, 1, 'C', False, aligned=True), int64)           # a module of the project
"""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from prebake.documents.messages import one_line, quote, reason
from prebake.errors import ConfigError

LIST: Final = "numba.txt"
"""The project's list, beside `models.toml`."""
FOLDER: Final = Path(sys.prefix, "numba")
"""The compiled functions of this environment."""
OWNER: Final = 0
"""The user id that owns the folder in an image."""
_PROCESSOR = "processor"
"""The file in the folder that names the processor that the functions were compiled for."""
_INDEX, _DATA = ".nbi", ".nbc"
"""Endings of numba's files: a function's index, and the code for one signature."""
_ENTRY = re.compile(r"(?P<own>\./)?(?P<module>[\w.]+)(?::(?P<function>[\w.]+)\((?P<types>.*)\))?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One line of the list."""

    module: str
    function: str | None = None
    """Qualified name in the module; None if importing the module compiles everything that is meant."""
    types: str = ""
    """Of the function's arguments (`prebake.startup.signatures`)."""
    own: bool = False
    """Whether the module is the project's, not one of an installed package."""

    @property
    def line(self) -> str:
        name = f"{'./' * self.own}{self.module}"
        return name if self.function is None else f"{name}:{self.function}({self.types})"


def read_list(text: str, where: str) -> list[Entry]:
    """The entries of a list. Raises ConfigError, which names the line."""
    entries = []
    for number, line in enumerate(text.splitlines(), 1):
        if not (line := line.strip()) or line.startswith("#"):
            continue
        match = _ENTRY.fullmatch(line)
        if match is None:
            raise ConfigError(f"{where}:{number}: {quote(line)} is neither a module nor module:function(types)")
        entries.append(Entry(module=match["module"], function=match["function"], types=match["types"] or "",
                             own=bool(match["own"])))  # fmt: skip
    return entries


def read_file(path: Path) -> str:
    """The text of a list without errors; empty if there is no file. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read it: {reason(error)}") from error
    read_list(text, str(path))
    return text


def compile_listed(entries: list[Entry], folder: Path) -> list[str]:
    """Compile the entries into the folder; one sentence for each that could not be compiled.

    Imports the modules, so it is for a process of its own. numba must not be imported before: it reads the variable
    that names the folder once. What this environment has compiled already is not compiled again.
    """
    os.environ["NUMBA_CACHE_DIR"] = str(folder)
    if folder != FOLDER:
        _link(FOLDER, folder)
    problems = []
    for entry in entries:
        try:
            _compile(entry)
        except Exception as error:  # whatever the module's import raises: the service starts without it, too
            problems.append(f"{entry.line}: is not compiled: {one_line(error)}")
    for link in filter(Path.is_symlink, folder.glob("*/*")):
        link.unlink()
    if folder.is_dir():
        (folder / _PROCESSOR).write_text(f"{_processor()}\n", encoding="utf-8")
    return problems


def _compile(entry: Entry) -> None:
    from importlib import import_module

    from prebake.startup.signatures import decode

    found: Any = import_module(entry.module)
    if entry.function is None:
        return
    for name in entry.function.split("."):
        found = getattr(found, name)
    compile_ = found.compile if hasattr(found, "compile") else found.add  # `add`: vectorize, guvectorize
    compile_(decode(entry.types))


def use(cache: str) -> str | None:
    """Put links to the compiled functions into numba's folder `cache`, once numba is imported.

    Returns why they are not used; None if they are, or if there are none.
    """
    if not cache or not FOLDER.is_dir():
        return None
    if (found := _untrusted(FOLDER)) is not None:
        return f"{found}: the compiled functions of numba are not used: only root may own or change them"
    built, here = _built_for(FOLDER), _processor()
    if built is not None and built != here:
        return (f"{FOLDER}: numba compiles its functions again: the image was built on another processor "
                f"({built.split()[0]}, this one is {here.split()[0]}); NUMBA_CPU_NAME=generic, in the build and here, "
                "compiles for both")  # fmt: skip
    with suppress(OSError):  # a folder that can't be written to: numba says so itself, if it is used
        _link(FOLDER, Path(cache))
    return None


def _untrusted(folder: Path) -> Path | None:
    """The first place in the folder that is not root's, or that others can write to, or that is a link."""
    for place in (folder, *sorted(folder.rglob("*"))):
        status = place.lstat()
        if status.st_uid != OWNER or status.st_mode & 0o022 or not _is_plain(status.st_mode):
            return place
    return None


def _is_plain(mode: int) -> bool:
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)


def _link(folder: Path, cache: Path) -> None:
    """Make a link for each function that the cache does not have yet: first the code, then the index that names it."""
    for index in sorted(folder.glob(f"*/*{_INDEX}")):
        target = cache / index.parent.name
        if (target / index.name).exists():
            continue
        target.mkdir(parents=True, exist_ok=True)
        for file in (*_data(index), index):
            with suppress(FileExistsError):
                (target / file.name).symlink_to(file)


def _data(index: Path) -> Iterator[Path]:
    """The files with code of a function: `NAME.1.nbc` beside `NAME.nbi`."""
    name = re.compile(rf"{re.escape(index.name.removesuffix(_INDEX))}\.\d+{re.escape(_DATA)}")
    return (file for file in index.parent.iterdir() if name.fullmatch(file.name))


def _built_for(folder: Path) -> str | None:
    try:
        return (folder / _PROCESSOR).read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _processor() -> str:
    """Name and features of the processor that numba compiles for, as in the keys of its cache."""
    from numba.core.registry import cpu_target

    return " ".join(cpu_target.target_context.codegen().magic_tuple()[1:]).strip()
