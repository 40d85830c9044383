"""The three wheels hold what they should, nothing else, and work without the source tree."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

from helpers import ROOT

HALVES = {"prebake": ROOT / "runtime", "prebake_build": ROOT / "build", "image_analyzer": ROOT / "service"}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    pytest.importorskip("hatchling", reason="hatchling builds the wheels")
    folder = tmp_path_factory.mktemp("wheels")
    for source in HALVES.values():
        subprocess.run(
            [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)],
            check=True, capture_output=True,
        )  # fmt: skip
    return {path.name.partition("-")[0].replace("prebake_image", "image"): path for path in folder.glob("*.whl")}


@pytest.fixture(scope="module")
def installed(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both wheels unpacked, as pip does it."""
    target = tmp_path_factory.mktemp("installed") / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile", "--target",
         str(target), *map(str, wheels.values())],
        check=True, capture_output=True,
    )  # fmt: skip
    return target


@pytest.mark.parametrize("name", HALVES)
def test_a_wheel_holds_its_package_to_the_last_file_and_nothing_else(wheels: dict[str, Path], name: str) -> None:
    package = HALVES[name] / name
    expected = {
        path.relative_to(HALVES[name]).as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheels[name]) as wheel:
        names = {path for path in wheel.namelist() if ".dist-info/" not in path}
    assert names == expected
    assert f"{name}/py.typed" in names
    assert ("image_analyzer/page.html" in names) == (name == "image_analyzer")


@pytest.mark.parametrize("name", HALVES)
def test_a_wheel_carries_its_licence_and_its_needs(wheels: dict[str, Path], name: str) -> None:
    with zipfile.ZipFile(wheels[name]) as wheel:
        info = next(path for path in wheel.namelist() if path.endswith(".dist-info/METADATA")).rpartition("/")[0]
        metadata = message_from_bytes(wheel.read(f"{info}/METADATA"))
        assert wheel.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert (metadata["License-Expression"], metadata["Requires-Python"]) == ("Apache-2.0", ">=3.10")
    needed = {need.split(";")[0].strip() for need in metadata.get_all("Requires-Dist", []) if "extra ==" not in need}
    if name == "prebake":
        assert needed == {"tomli>=2"}  # no framework: a service brings its own
    elif name == "image_analyzer":
        assert needed == {
            "pillow",
            f"prebake[easyocr,transformers]=={metadata['Version']}",
            "prometheus-client>=0.22",
            "waitress<4,>=3",
        }
    else:
        assert f"prebake=={metadata['Version']}" in needed


def outside(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python with the installed wheels in front of everything; the source tree is not the working folder."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREBAKE_")}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=installed.parent,
        env={**environment, "PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip


def test_every_module_is_imported_from_the_wheels(installed: Path) -> None:
    script = (
        "import importlib, pathlib, pkgutil, sys, prebake, prebake_build, image_analyzer\n"
        "site = pathlib.Path(sys.argv[1])\n"
        "from prebake.families.compat import torchvision_operators; torchvision_operators()\n"
        "for package in (prebake, prebake_build, image_analyzer):\n"
        "    for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "        if not module.name.endswith('__main__'):\n"
        "            found = importlib.import_module(module.name)\n"
        "            assert pathlib.Path(found.__file__).is_relative_to(site), found.__file__\n"
    )
    done = outside(installed, "-c", script, str(installed))
    assert done.returncode == 0, done.stderr


def test_the_command_has_all_three_and_the_page(installed: Path) -> None:
    done = outside(installed, "-m", "prebake", "--help")
    assert (done.returncode, " bake " in done.stdout, " serve " in done.stdout) == (0, True, True)
    script = "from image_analyzer.service import _page; print(len(_page().body))"
    assert (
        int(outside(installed, "-c", script).stdout)
        == (ROOT / "service" / "image_analyzer" / "page.html").stat().st_size
    )


def test_the_runtime_alone_has_its_own_commands(wheels: dict[str, Path], tmp_path: Path) -> None:
    """In a bare environment: no build half, no framework, only what the wheel asks for."""
    with zipfile.ZipFile(wheels["prebake"]) as wheel:
        wheel.extractall(tmp_path / "site")
    if sys.version_info < (3, 11):  # which it asks for there
        import tomli  # type: ignore[import-not-found, unused-ignore]

        shutil.copytree(Path(tomli.__file__).parent, tmp_path / "site" / "tomli")
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", "import sys; sys.path.insert(0, sys.argv.pop(1))\n"
         "from prebake.__main__ import main; main()", str(tmp_path / "site"), "--help"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    found = [command for command in ("check", "inspect", "serve", "bake") if f"\n    {command} " in done.stdout]
    assert (done.returncode, found) == (0, ["check", "inspect"]), done.stderr
