"""The stand-ins of the examples: the hub's repositories are the same bytes each time, and pip installs the wheel."""

from __future__ import annotations

import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from helpers.cpu_wheels import write_torchaudio
from helpers.example_environment import environment, variables
from helpers.example_hub import ExampleHub, main, write_repositories
from helpers.example_models import EMBEDDINGS, TRANSCRIPTS


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment(tmp_path_factory.mktemp("plain"))


def test_a_repository_is_the_same_bytes_each_time(python: Path, tmp_path: Path) -> None:
    first = write_repositories(tmp_path / "a", python, [TRANSCRIPTS])
    second = write_repositories(tmp_path / "b", python, [TRANSCRIPTS])
    with ExampleHub(first) as one, ExampleHub(second) as other:
        assert one.commits == other.commits
    assert write_repositories(tmp_path / "a", python, [TRANSCRIPTS]) == first  # kept


def test_several_repositories_are_served_by_name(python: Path, tmp_path: Path) -> None:
    folders = write_repositories(tmp_path, python, [EMBEDDINGS, TRANSCRIPTS])
    with ExampleHub(folders) as hub:
        for name, folder in folders.items():
            with urllib.request.urlopen(f"{hub.url}/{name}/resolve/main/config.json") as answer:
                assert answer.read() == (folder / "config.json").read_bytes()
                assert answer.headers["X-Repo-Commit"] == hub.commits[name]
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{hub.url}/acme/other/resolve/main/config.json")
        assert caught.value.headers["X-Error-Code"] == "RepoNotFound"
        caught.value.close()


def test_pip_takes_the_wheel_for_the_cpu(python: Path, tmp_path: Path) -> None:
    wheel = write_torchaudio(tmp_path)
    version = wheel.name.split("-")[1]
    with ExampleHub({}, wheels=[wheel]) as hub:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path / "site"),
                   "--index-url", f"{hub.url}/simple/", f"torchaudio=={version.partition('+')[0]}"]  # fmt: skip
        subprocess.run(command, check=True, timeout=120, env=variables(PIP_CONFIG_FILE="/dev/null"))
    code = "import torchaudio; print(torchaudio.__file__)"
    done = subprocess.run(
        [python, "-c", code], env=variables(PYTHONPATH=str(tmp_path / "site")), capture_output=True, text=True
    )
    assert done.stdout == f"{tmp_path}/site/torchaudio/__init__.py\n", done.stderr


def test_the_command_wants_something_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2
    assert capsys.readouterr().err.endswith("error: give --write FOLDER, --serve PORT, or both\n")
