"""The modules that decide the bytes of baked models, found by reading the code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prebake_build.closure import closure, copy

ROOT = Path(__file__).parent.parent
FILES = {
    "build/pyproject.toml": "", "build/LICENSE": "", "runtime/pyproject.toml": "", "runtime/LICENSE": "",
    "build/prebake_build/__init__.py": "",
    "build/prebake_build/stage.py": "import prebake.layout\nfrom prebake_build import one\n",
    "build/prebake_build/one.py": "def later():\n  from prebake_build.two import name\n  run('prebake_build.three')\n",
    "build/prebake_build/two.py": "if TYPE_CHECKING:\n  from prebake import service\n",
    "build/prebake_build/three.py": "import json\n",
    "build/prebake_build/four.py": "",
    "runtime/prebake/__init__.py": "from prebake.service import name\n",
    "runtime/prebake/layout.py": "",
    "runtime/prebake/service.py": "",
}  # fmt: skip
FOUND = (
    "build/prebake_build/__init__.py",
    "build/prebake_build/one.py",
    "build/prebake_build/stage.py",
    "build/prebake_build/three.py",
    "build/prebake_build/two.py",
    "runtime/prebake/__init__.py",
    "runtime/prebake/layout.py",
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for path, text in FILES.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    return tmp_path


def test_imports_at_any_depth_and_modules_named_in_strings_are_followed(source: Path) -> None:
    assert closure(source) == FOUND


def test_an_unrelated_module_changes_nothing_of_the_copy(source: Path, tmp_path: Path) -> None:
    copies = []
    for number, text in enumerate(("", "CHANGED = True\n")):
        (source / "runtime/prebake/service.py").write_text(text)
        output = tmp_path / f"copy{number}"
        copy(source, output)
        copies.append({path.relative_to(output): path.read_bytes() for path in output.rglob("*") if path.is_file()})
    assert copies[0] == copies[1]


def test_the_copy_can_be_installed_and_leaves_the_package_itself_empty(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "copy"
    copy(source, output)
    found = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
    assert found == {*FOUND} | {
        f"{half}/{name}" for half in ("runtime", "build") for name in ("pyproject.toml", "LICENSE", "README.md")
    }
    assert (output / "runtime/prebake/__init__.py").read_text() == ""


def test_here_the_service_and_the_command_line_are_not_among_them() -> None:
    found = closure(ROOT)
    apart = ("service", "analyzer", "commands", "metrics", "models", "probe", "deferred")
    assert not {f"runtime/prebake/{name}.py" for name in apart} & set(found)
    assert not [path for path in found if "/commands/" in path or path.endswith(("image.py", "measure.py", "naive.py"))]


def test_here_everything_that_baking_imports_is_among_them(tmp_path: Path) -> None:
    """A bake in processes that find the copy, and of this repository nothing else."""
    copy(ROOT, tmp_path / "copy")
    (tmp_path / "models.toml").write_text('[models.caption]\nsource = "dummy:blip-base?size=tiny"\n')
    code = (
        "import json, sys\n"
        "from prebake_build.stage import main\n"
        "code = main()\n"
        "ours = [m.__file__ for n, m in sys.modules.items() if n.partition('.')[0] in ('prebake', 'prebake_build')]\n"
        "print(json.dumps([code, ours]))"
    )
    arguments = ["bake", "caption", "--models", str(tmp_path / "models.toml"), "--output", str(tmp_path / "models")]
    halves = os.pathsep.join(str(tmp_path / "copy" / half) for half in ("runtime", "build"))
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True, check=True,
        env={**os.environ, "PYTHONPATH": halves},
    )  # fmt: skip
    exit_code, imported = json.loads(done.stdout)
    assert exit_code == 0
    assert [file for file in imported if not file.startswith(str(tmp_path))] == []
