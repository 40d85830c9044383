"""`prebake scan` of a service that numba compiles functions for: the list for the image's build."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from helpers.baking import TESTS, prebake
from helpers.numba_images import MODULE, TOTAL

pytest.importorskip("numba")

WORKER = """
import sys
from prebake.adopt.loads import Load, record
record(Load(library="torch", function="torch.load", uri="url:https://example.org/net.pth", class_="tensors"))
import dsp, mine, numpy
dsp.total(numpy.ones(3), 1)
mine.total(numpy.ones(3))
mine.total(numpy.ones(3))
dsp.inner()
"""
LISTED = f"""\
# What numba compiles of this service's packages, as `prebake scan` saw it: the image's build compiles it once.
./mine
dsp
./mine:total(Array(float64, 1, 'C', False, aligned=True), omitted(default=0))
{TOTAL}
"""
WROTE = "Wrote numba.txt with what numba compiled: the image's build compiles it once."


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a module of its own, in the current folder, and an installed package."""
    for folder, name in (("project", "mine.py"), ("site-packages", "dsp.py")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text(MODULE)
    path = [str(tmp_path / "site-packages"), str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def scan(capfd: pytest.CaptureFixture[str], *options: str) -> tuple[str, list[str]]:
    """The output, and the lines about numba on standard error."""
    code, out, err = prebake(capfd, "scan", "--until-exit", *options, "--", sys.executable, "-c", WORKER)
    assert code == 0, err
    return out, [line for line in err.splitlines() if "numba" in line]


def test_what_numba_compiles_is_listed_once(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    inner = (
        f"prebake: numba: {project.parent}/site-packages/dsp.py: inner.<locals>.one is compiled at each start: it is "
        "defined in a function"
    )
    for told in ([WROTE, inner], [inner]):  # the second time from numba's cache, and nothing is to be added
        assert scan(capfd)[1] == told
        assert (project / "numba.txt").read_text() == LISTED


def test_lines_that_are_there_stay(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    mine = f"# mine\nother.package\n{TOTAL}"
    (project / "numba.txt").write_text(mine)
    added = [line for line in LISTED.splitlines()[1:] if line != TOTAL]
    out, _ = scan(capfd, "--diff")
    assert "\n".join(["+" + line for line in added]) in out
    assert (project / "numba.txt").read_text() == mine
    scan(capfd)
    assert (project / "numba.txt").read_text().splitlines() == [*mine.splitlines(), *added]


def test_the_list_is_in_the_json(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out, _ = scan(capfd, "--json")
    assert json.loads(out)["numba"] == LISTED.splitlines()[1:]


def test_a_malformed_list_is_refused_before_the_service_starts(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (project / "numba.txt").write_text("a b\n")
    assert prebake(capfd, "scan", "--", "false") == (
        2, "", 'prebake: error: numba.txt:1: "a b" is neither a module nor module:function(types)\n'
    )  # fmt: skip
