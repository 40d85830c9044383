"""The part of a project that a factory needs: what it imports of the project, and nothing else."""

from __future__ import annotations

from pathlib import Path

from prebake_build.baking.own_code import copy_code


def project(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / "project" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "project" / name).write_text(text)
    return folder / "project"


def copied(folder: Path, module: str, files: dict[str, str]) -> list[str]:
    output = folder / "code"
    copy_code(module, project(folder, files), output)
    return sorted(path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file())


def test_modules_that_import_each_other_are_copied_and_others_are_not(tmp_path: Path) -> None:
    files = {
        "networks.py": "import torch, layers\n",
        "layers.py": "def make():\n    from helpers.maths import square\n    import networks\n",
        "helpers/maths.py": "from . import more\n",
        "helpers/more.py": "",
        "helpers/table.json": "{}",
        "app.py": "import networks\n",
        "models.toml": "",
    }
    assert copied(tmp_path, "networks", files) == [
        "helpers/maths.py", "helpers/more.py", "helpers/table.json", "layers.py", "networks.py"
    ]  # fmt: skip


def test_code_in_src_is_found(tmp_path: Path) -> None:
    assert copied(tmp_path, "pkg.networks", {"src/pkg/__init__.py": "", "src/pkg/networks.py": ""}) == [
        "pkg/__init__.py", "pkg/networks.py"
    ]  # fmt: skip


def test_nothing_is_copied_for_an_installed_package(tmp_path: Path) -> None:
    assert copied(tmp_path, "torchcrepe.model", {"app.py": ""}) == []
    assert not (tmp_path / "code").exists()


def test_a_file_that_does_not_parse_is_copied_as_it_is(tmp_path: Path) -> None:
    assert copied(tmp_path, "networks", {"networks.py": "def f(:\n"}) == ["networks.py"]
