"""Why a command cannot be started is told by what stands in its place, from the errors that the system gives."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from prebake.adopt.unstartable import why_unstartable

NOT_FOUND = "command not found: install what brings it into this environment, or give its path"
NO_PERMISSION = "cannot be executed: the file has no permission for it: chmod +x "


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "the command is an empty word"),
        ("a\0b", "not the name of a command: embedded null byte"),
        ("no-such-command", NOT_FOUND),
        ("here.sh", "command not found: a file here is started by ./here.sh"),
        ("app.py", "command not found: a file here is started by ./app.py, or python app.py"),
        ("./none", "command not found: there is no such file"),
        ("./app.py/x", "command not found: there is no such file"),
        ("./app.py", f"{NO_PERMISSION}./app.py, or python ./app.py"),
        ("./data", f"{NO_PERMISSION}./data"),
        ("./folder", "cannot be executed: it is a folder"),
        ("./lost.sh", "the program that its first line names is not found"),
        ("./bare.sh",
         "cannot be executed: no program for this machine, and no script: its first line names no interpreter (#!)"),
    ],
)  # fmt: skip
def test_why_a_command_cannot_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, why: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for file, text in (("app.py", ""), ("data", "text"), ("here.sh", "#!/bin/sh\n"), ("lost.sh", "#!/none/sh\n"),
                       ("bare.sh", "echo")):  # fmt: skip
        (tmp_path / file).write_text(text)
    for file in ("here.sh", "lost.sh", "bare.sh"):
        (tmp_path / file).chmod(0o755)
    with pytest.raises((OSError, ValueError)) as caught:
        subprocess.run([name], env=dict(os.environ), check=False)
    assert isinstance(caught.value, OSError | ValueError)
    assert why_unstartable(name, caught.value) == why
