"""`prebake completion`: bash completes with the printed script, and the others can read theirs."""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from prebake.errors import ConfigError
from prebake_build.commands.completion import add

Complete = Callable[..., list[str]]


def _run(*arguments: str) -> int:
    parser = argparse.ArgumentParser(prog="prebake")
    add(parser.add_subparsers())
    options = parser.parse_args(["completion", *arguments])
    return int(options.run(options))


@pytest.fixture
def script(capsys: pytest.CaptureFixture[str]) -> Callable[[str], str]:
    pytest.importorskip("shtab")

    def printed(shell: str) -> str:
        capsys.readouterr()
        assert _run(shell) == 0
        return capsys.readouterr().out

    return printed


@pytest.fixture
def complete(tmp_path: Path, script: Callable[[str], str]) -> Complete:
    """What bash offers for the last of the words, as it asks the function that the script registers."""
    if shutil.which("bash") is None:
        pytest.skip("there is no bash here")
    (tmp_path / "script").write_text(script("bash"), encoding="utf-8")
    folder = tmp_path / "project"
    (folder / "models").mkdir(parents=True)
    (folder / "models.toml").touch()

    def offered(*words: str) -> list[str]:
        lines = f"""\
            source {shlex.quote(str(tmp_path / "script"))}
            COMP_WORDS=({shlex.join(words)})
            COMP_CWORD={len(words) - 1}
            read -ra registered <<< "$(complete -p prebake)"
            "${{registered[-2]}}"
            printf '%s\\n' "${{COMPREPLY[@]}}"
        """
        done = subprocess.run(
            ["bash", "--norc", "--noprofile", "-c", lines], cwd=folder, capture_output=True, text=True, check=True
        )
        assert done.stderr == ""
        return sorted(done.stdout.split())

    return offered


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("che",), ["check"]),
        (("cache", "pr"), ["prune"]),
        (("bake", "--mod"), ["--models"]),
        (("bake", "--models", "mod"), ["models", "models.toml"]),
        (("bake", "--output", "mod"), ["models"]),
        (("run", "--", "models.t"), ["models.toml"]),
        (("no-such-command", "--mod"), []),
    ],
)
def test_bash_completes(complete: Complete, words: tuple[str, ...], expected: list[str]) -> None:
    assert complete("prebake", *words) == expected


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_zsh_and_fish_can_read_theirs(tmp_path: Path, shell: str, script: Callable[[str], str]) -> None:
    text = script(shell)
    assert text.splitlines()[0].startswith({"zsh": "#compdef prebake", "fish": "#"}[shell])
    assert {"zsh": "    check:'", "fish": "-a check "}[shell] in text
    if shutil.which(shell) is not None:
        (tmp_path / "script").write_text(text, encoding="utf-8")
        assert subprocess.run([shell, "-n", tmp_path / "script"], check=False).returncode == 0


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        _run("csh")
    assert caught.value.code == 2
    assert "argument shell: invalid choice: 'csh' (choose from " in capsys.readouterr().err


def test_without_shtab_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(ConfigError) as caught:
        _run("bash")
    assert str(caught.value) == (
        "shell completion needs shtab (shtab is missing): pip install 'prebake-build[completion]'"
    )


def test_an_old_shtab_without_fish_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    old = SimpleNamespace(SUPPORTED_SHELLS=["bash", "zsh"], __version__="1.8.0")
    monkeypatch.setitem(sys.modules, "shtab", old)
    with pytest.raises(ConfigError) as caught:
        _run("fish")
    assert str(caught.value) == (
        "this version of shtab (1.8.0) does not know fish: pip install --upgrade 'prebake-build[completion]'"
    )
