"""A package with functions that numba compiles, and an environment in which they were compiled as in an image."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from helpers import ROOT

MODULE = """
import numba

@numba.vectorize(["float64(float64)"], cache=True)
def twice(x):
    return 2 * x

@numba.jit(nopython=True, cache=True)
def total(values, begin=0):
    for value in values:
        begin += value
    return begin

def inner():
    @numba.jit(nopython=True, cache=True)
    def one():
        return 1
    return one()
"""
USE = """
import json, os, sys
from pathlib import Path
from prebake.startup import compiled
compiled.FOLDER, compiled.OWNER = Path(sys.argv[1]), int(sys.argv[2])
from prebake.adopt.process import prepare
prepare()
import dsp, numpy
assert dsp.total(numpy.ones(3), 1) == 4.0 and dsp.twice(2.0) == 4.0
exec(sys.argv[3])
stats = dsp.total.stats
cache = Path(os.environ["NUMBA_CACHE_DIR"])
print(json.dumps({
    "hits": sum(stats.cache_hits.values()), "misses": sum(stats.cache_misses.values()),
    "links": sorted(path.name for path in cache.glob("*/*") if path.is_symlink()),
    "files": sorted(path.name for path in cache.glob("*/*") if not path.is_symlink()),
}))
"""
"""Arguments: the folder of compiled functions, its owner, and further code."""
TOTAL = "dsp:total(Array(float64, 1, 'C', False, aligned=True), int64)"
"""The entry of the call in `USE`."""


class NumbaImage:
    """A folder with the package `dsp`, installed, and what was compiled of it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.compiled, self.list = folder, folder / "environment" / "numba", folder / "numba.txt"
        self.packages = folder / "site-packages"
        self.packages.mkdir()
        (self.packages / "dsp.py").write_text(MODULE)
        self.list.write_text(f"dsp\n{TOTAL}\n")

    def variables(self, **more: str) -> dict[str, str]:
        path = [str(self.packages), str(ROOT / "runtime")]
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("NUMBA_", "PREBAKE"))}
        return {**kept, "PYTHONPATH": os.pathsep.join(path), "PYTHONWARNINGS": "ignore", "PREBAKE_MEMO": "", **more}

    def prepare(self, **variables: str) -> subprocess.CompletedProcess[str]:
        """Compile what is listed, as the image's build does."""
        code = (
            "import sys; from pathlib import Path; from prebake.startup.prepare import compile_functions as compile_; "
            "compile_(Path(sys.argv[1]), Path(sys.argv[2]))"
        )
        return self.python(code, str(self.compiled), str(self.list), variables=variables)

    def start(self, cache: Path, then: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
        """Start a process that uses the package, with this folder for numba's cache."""
        given = {"NUMBA_CACHE_DIR": str(cache), **variables}
        return self.python(USE, str(self.compiled), str(os.getuid()), then, variables=given)

    def python(
        self, *arguments: str, cwd: Path | None = None, variables: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run code, with arguments."""
        command, env = [sys.executable, "-B", "-c", *arguments], self.variables(**variables or {})
        return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=200)

    def files(self) -> dict[str, bytes]:
        """The compiled functions: path → content."""
        found = sorted(path for path in self.compiled.rglob("*") if path.is_file())
        return {str(path.relative_to(self.compiled)): path.read_bytes() for path in found}
