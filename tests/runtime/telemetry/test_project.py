"""A project's settings: from prebake.toml or pyproject.toml, typed, and refused with the place and the way out."""

from __future__ import annotations

from pathlib import Path

import pytest

from prebake.errors import ConfigError
from prebake.telemetry.budget import Budget
from prebake.telemetry.project import DeclaredRequest, Project, read_project

EVERYTHING = """
command = "uvicorn app:app --port 9000"
ready = "/health"
port = 9000
requests = ["/health", "probes.caption:ask", {path = "/caption", file = "cat.png", type = "image/png"},
            {path = "/items", method = "DELETE"}]
budget = {ready = 3, peak_memory = "1.5 GB"}
"""


def project(folder: Path, text: str, name: str = "prebake.toml") -> Project:
    (folder / name).write_text(text)
    return read_project(folder)


def refused(folder: Path, text: str, name: str = "prebake.toml") -> str:
    with pytest.raises(ConfigError) as error:
        project(folder, text, name)
    assert error.value.exit_code == 2
    return str(error.value).replace(f"{folder}/", "")


def test_a_project_without_settings_has_none(tmp_path: Path) -> None:
    assert read_project(tmp_path) == Project(folder=tmp_path)
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\n')
    assert read_project(tmp_path) == Project(folder=tmp_path)


def test_every_key_is_read_into_its_type(tmp_path: Path) -> None:
    assert project(tmp_path, EVERYTHING) == Project(
        folder=tmp_path,
        path=tmp_path / "prebake.toml",
        command=("uvicorn", "app:app", "--port", "9000"),
        ready="/health",
        port=9000,
        requests=(
            DeclaredRequest(line="/health"),
            DeclaredRequest(line="probes.caption:ask"),
            DeclaredRequest(method="POST", path="/caption", file=tmp_path / "cat.png", type="image/png"),
            DeclaredRequest(method="DELETE", path="/items"),
        ),
        budget=Budget(ready=3, peak_memory=1_500_000_000),
    )


def test_pyproject_has_the_same_settings_in_tool_prebake(tmp_path: Path) -> None:
    found = project(tmp_path, '[tool.prebake]\ncommand = ["python", "-m", "my app"]\n', "pyproject.toml")
    assert (found.command, found.path) == (("python", "-m", "my app"), tmp_path / "pyproject.toml")


def test_patterns_of_what_stays_in_the_image(tmp_path: Path) -> None:
    assert project(tmp_path, 'keep = ["torch/include/*", "*/tests/*"]').keep == ("torch/include/*", "*/tests/*")


def test_a_budget_may_be_a_file_beside_it(tmp_path: Path) -> None:
    (tmp_path / "limits.toml").write_text("ready = 2.5")
    assert project(tmp_path, 'budget = "limits.toml"').budget == Budget(ready=2.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('comand = "x"', 'prebake.toml: comand: unknown key: did you mean "command"?'),
        ('command = ""', 'prebake.toml: command: is empty (expected a program and its arguments, such as '
                         '"uvicorn app:app")'),
        ("command = 3", "prebake.toml: command: expected a string or a list of strings, found a whole number (3)"),
        ("command = ['a', 3]", "prebake.toml: command[1]: expected a string, found a whole number (3)"),
        ("command = 'a \"b'", 'prebake.toml: command: "a \\"b" can\'t be split into words: No closing quotation'),
        ("port = 0", "prebake.toml: port: 0 is not between 1 and 65535"),
        ('port = "80"', 'prebake.toml: port: expected a whole number, found the string "80"'),
        ('ready = "health"', 'prebake.toml: ready: "health" is neither a path such as "/health" nor a URL that begins '
                             'with http'),
        ("requests = [3]", "prebake.toml: requests[0]: expected a table, found a whole number (3)"),
        ('requests = [{path = "x"}]', 'prebake.toml: requests[0].path: "x" does not begin with /'),
        ('requests = [{path = "/", method = "post"}]', 'prebake.toml: requests[0].method: "post" is not an HTTP method '
                                                       'such as "POST"'),
        ('requests = [{path = "/", fiel = "x"}]', 'prebake.toml: requests[0].fiel: unknown key: did you mean "file"?'),
        ('requests = [{path = "/", type = "image/png"}]', "prebake.toml: requests[0].type: is the content type of a "
                                                          "file, but there is no `file`"),
        ("budget = {redy = 3}", 'prebake.toml: budget.redy: unknown key: did you mean "ready"?'),
        ("budget = 3", "prebake.toml: budget: expected a table, found a whole number (3)"),
        ('budget = "no.toml"', "no.toml: cannot read this budget: No such file or directory"),
        ("keep = 'torch'", 'prebake.toml: keep: expected a list, found the string "torch"'),
        ("keep = ['a b']", 'prebake.toml: keep[0]: "a b" is no pattern of paths such as "torch/include/*"'),
        ("keep = ['a', '$(b)']", 'prebake.toml: keep[1]: "$(b)" is no pattern of paths such as "torch/include/*"'),
        ("= 3", "prebake.toml: is not TOML: Invalid statement (at line 1, column 1)"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused_with_their_place(tmp_path: Path, text: str, message: str) -> None:
    assert refused(tmp_path, text) == message


def test_places_in_pyproject_are_named_in_full(tmp_path: Path) -> None:
    assert refused(tmp_path, "[tool.prebake]\nport = 0", "pyproject.toml") == (
        "pyproject.toml: tool.prebake.port: 0 is not between 1 and 65535"
    )
    assert refused(tmp_path, "[tool]\nprebake = 3", "pyproject.toml") == (
        "pyproject.toml: tool.prebake: expected a table, found a whole number (3)"
    )


def test_settings_in_both_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "prebake.toml").write_text("port = 8000")
    assert refused(tmp_path, "[tool.prebake]\n", "pyproject.toml") == (
        "prebake.toml and [tool.prebake] in pyproject.toml both have settings: keep one of them"
    )
