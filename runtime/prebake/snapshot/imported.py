"""The files that stand for the code of this process: if one of them changes, its snapshot does not fit.

The program's own modules, each; and of the installed distributions, of which modules are imported, the `RECORD`, whose
folder has the version in its name. So a module that is mounted over another one refuses the snapshot, and so does a
package of another version; a file of a package that somebody edited by hand does not. Watching each of the thousands of
modules would take 5 ms at every start, and much longer from a cold disk.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

LIBRARIES = tuple({str(Path(path).resolve()) + os.sep for name, path in sysconfig.get_paths().items()
                   if name in ("stdlib", "platstdlib", "purelib", "platlib")})  # fmt: skip


def is_library(file: str) -> bool:
    """Whether a module's file is Python's or an installed distribution's."""
    return file.startswith((*LIBRARIES, "<")) or "site-packages" in file or "dist-packages" in file


def files() -> Iterator[Path]:
    """The files to watch."""
    names = set()
    for name, module in sys.modules.copy().items():
        file = getattr(module, "__file__", None)
        if not isinstance(file, str) or not Path(file).is_file():
            continue
        names.add(name.partition(".")[0])
        if not is_library(str(Path(file).resolve())):
            yield Path(file).absolute()
    yield from _records(names)


def _records(names: set[str]) -> Iterator[Path]:
    """The `RECORD` of each distribution that one of these top-level modules is from."""
    for folder in dict.fromkeys(sys.path):
        for record in sorted(Path(folder or ".").glob("*.dist-info/RECORD")):
            with record.open(encoding="utf-8", errors="replace") as lines:
                if any(line.partition(",")[0].partition("/")[0].partition(".")[0] in names for line in lines):
                    yield record.absolute()
