"""Where the packages of a project come from, and what can't be installed in an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prebake.documents import toml
from prebake.errors import ConfigError
from prebake_build.scaffold.requirements import Requirements, find_requirements

PYPROJECT = """
[project]
name = "service"
dependencies = ["FastAPI>=0.110", "torch"]

[project.optional-dependencies]
serve = ["uvicorn"]

[dependency-groups]
gpu = ["Flash_Attn"]
all = [{include-group = "gpu"}]
"""


def found(folder: Path, **options: Any) -> Requirements:
    path = folder / "pyproject.toml"
    pyproject = toml.loads(path.read_text()) if path.exists() else {}
    return find_requirements(folder, pyproject, **({"file": None, "extras": (), "groups": ()} | options))


def refused(folder: Path, **options: Any) -> str:
    with pytest.raises(ConfigError) as error:
        found(folder, **options)
    return str(error.value).replace(f"{folder}/", "").replace(str(folder), "FOLDER")


def test_requirements_come_with_what_they_include(tmp_path: Path) -> None:
    (tmp_path / "requirements").mkdir()
    (tmp_path / "requirements.txt").write_text(
        "-r requirements/base.txt  # all\nuvicorn[standard]>=0.30; python_version>'3'\n"
    )
    (tmp_path / "requirements/base.txt").write_text(
        "--extra-index-url https://index\n-c limits.txt\nnumpy==2.4 \\\n  --hash=sha256:00\n"
    )
    (tmp_path / "requirements/limits.txt").write_text("pillow<14\n")
    assert found(tmp_path) == Requirements(
        kind="pip",
        files=("requirements.txt", "requirements/base.txt", "requirements/limits.txt"),
        names=frozenset({"uvicorn", "numpy", "pillow"}),
    )


def test_a_named_file_comes_first(tmp_path: Path) -> None:
    for name in ("requirements.txt", "prod.txt", "uv.lock"):
        (tmp_path / name).write_text("torch\n")
    assert found(tmp_path, file="prod.txt").files == ("prod.txt",)


def test_pyproject_has_dependencies_extras_and_groups(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    assert found(tmp_path, extras=("serve",), groups=("gpu",)) == Requirements(
        kind="pyproject",
        files=("pyproject.toml",),
        names=frozenset({"fastapi", "torch", "uvicorn", "flash-attn"}),
        extras=("serve",),
        groups=("gpu",),
    )


def test_a_lock_of_uv_comes_before_the_others(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    (tmp_path / "requirements.txt").write_text("torch\n")
    (tmp_path / "uv.lock").write_text('version = 1\n[[package]]\nname = "torch"\nversion = "2.13.0"\n')
    assert found(tmp_path) == Requirements(kind="uv", files=("uv.lock", "pyproject.toml"), names=frozenset({"torch"}))


def test_a_project_without_requirements_is_told_what_to_write(tmp_path: Path) -> None:
    assert refused(tmp_path) == (
        "FOLDER: nothing says which packages the service needs (expected requirements.txt, uv.lock, or dependencies in "
        "pyproject.toml): list what it imports in requirements.txt, one a line; `pip freeze` lists what is installed"
    )


def test_a_lock_of_another_tool_is_exported(tmp_path: Path) -> None:
    (tmp_path / "poetry.lock").touch()
    assert refused(tmp_path) == (
        "FOLDER: poetry.lock can't be installed in the image: poetry export --output requirements.txt"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("torch\n-e .\n", 'requirements.txt: line 2: "-e ." is a folder, and this step has no code: init copies the '
                          "project's code into the image (or installs it with --package): remove the line"),
        ("./lib\n", 'requirements.txt: line 1: "./lib" is a folder, and this step has no code: init copies the '
                    "project's code into the image (or installs it with --package): remove the line"),
        ("-r ../other.txt\n", "../other.txt: is outside the project's folder, which is all that the build can read"),
        ("-r missing.txt\n", "missing.txt: there is no such file"),
        ("to rch\n", 'requirements.txt: line 1: "to rch" is not a requirement: Expected semicolon (after name with no '
                     "version specifier) or end"),
    ],
)  # fmt: skip
def test_what_the_build_cannot_install_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "requirements.txt").write_text(text)
    assert refused(tmp_path) == message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"extras": ("serv",)}, 'pyproject.toml: project.optional-dependencies: there is no "serv": did you mean '
                                '"serve"?'),
        ({"groups": ("cpu",)}, 'pyproject.toml: dependency-groups: there is no "cpu": did you mean "gpu"?'),
        ({"groups": ("all",)}, "pyproject.toml: dependency-groups: init can't follow {include-group = …}: name each "
                               "group with --group, or lock them with uv"),
        ({"extras": ("serve",), "file": "prod.txt"}, "FOLDER: --extra and --group need dependencies in "
                                                     "pyproject.toml, but they come from prod.txt"),
    ],
)  # fmt: skip
def test_extras_and_groups_that_are_not_there_are_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    assert refused(tmp_path, **options) == message


def test_dynamic_dependencies_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\ndynamic = ["dependencies"]\n')
    assert refused(tmp_path) == (
        "pyproject.toml: project.dynamic: the dependencies are known to the build alone: write them to "
        "requirements.txt, or name their file with --requirements"
    )
