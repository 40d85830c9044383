"""The command line: help with an example, exit codes, and `inspect` as people and pipelines use it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.baking import prebake, without_privileges
from prebake.__main__ import main
from prebake.baked.header import read_header
from prebake.baked.manifest import Manifest
from prebake.commands.parsing import GROUP, OWN

COMMANDS = sorted({*OWN, *(entry.name for entry in entry_points(group=GROUP))})

# --- every command -----------------------------------------------------------------------------------------------


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = prebake(capsys, "--help")
    assert code == 0
    assert [name for name in COMMANDS if not re.search(rf"^    {name}\s", out, re.MULTILINE)] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_with_an_example(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = prebake(capsys, command, "--help")
    assert code == 0
    assert "example" in out
    assert f"  prebake {command} " in out.partition("example")[2]
    assert [line for line in out.splitlines() if len(line) > 80 and not line.startswith("  ")] == []


def test_version_lists_the_distributions_that_are_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def distribution(name: str, *groups: str) -> SimpleNamespace:
        entries = [EntryPoint("x", "y:z", group) for group in groups]
        return SimpleNamespace(name=name, version="1.2", entry_points=entries)

    installed = [
        distribution("torch"), distribution("prebake-build", "prebake.commands"), distribution("prebake"),
        distribution("their-family", "console_scripts", "prebake.families"), distribution("prebaked-cakes", "cakes"),
    ]  # fmt: skip
    monkeypatch.setattr("importlib.metadata.distributions", lambda: installed)
    assert prebake(capsys, "--version") == (0, "prebake 1.2\nprebake-build 1.2\ntheir-family 1.2\n", "")


def test_help_has_examples_for_any_service(capsys: pytest.CaptureFixture[str]) -> None:
    out = prebake(capsys, "--help")[1]
    for command in ("scan", "run", "check", "measure"):
        assert f"\n  prebake {command} -- uvicorn app:app " in out


@pytest.mark.parametrize("arguments", [[], ["bkae"], ["bake"], ["serve", "--port", "x"], ["check", "--reedy", "3"]])
def test_wrong_use_is_exit_code_2_with_the_usage(capsys: pytest.CaptureFixture[str], arguments: Sequence[str]) -> None:
    code, out, err = prebake(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("usage: prebake")


@pytest.mark.parametrize("command", OWN)
def test_the_runtimes_own_commands_do_not_look_for_the_build_half(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    seen: list[dict[str, str]] = []

    def noting(**found: str) -> list[EntryPoint]:
        seen.append(found)
        return []

    monkeypatch.setattr("importlib.metadata.entry_points", noting)
    assert prebake(capsys, command, "--help")[0] == 0
    assert seen == []
    assert prebake(capsys, "nothing", "--help")[0] == 2
    assert seen == [{"group": "prebake.commands", "name": "nothing"}, {"group": "prebake.commands"}]


def fake(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr("prebake.commands.inspect._run", fail)


def test_what_the_system_refuses_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake(monkeypatch, OSError(5, "Input/output error", "/models/caption"))
    assert prebake(capsys, "inspect") == (1, "", "prebake: error: /models/caption: Input/output error\n")
    fake(monkeypatch, OSError(12, "Cannot allocate memory"))
    assert prebake(capsys, "inspect") == (1, "", "prebake: error: inspect: Cannot allocate memory\n")


def test_an_interrupt_is_exit_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, KeyboardInterrupt())
    assert main(["inspect"]) == 130


def test_a_bug_is_not_dressed_up_as_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        main(["inspect"])


# --- inspect -----------------------------------------------------------------------------------------------------


def test_inspect_tells_what_is_in_a_model(tagger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = Manifest.read(tagger / "tagger")
    total = sum(file.size for file in manifest.files)
    code, out, _ = prebake(capsys, "inspect", tagger)
    lines = dict(line.split(maxsplit=1) for line in out.replace("made by", "made-by").replace(
        "proven with", "proven-with").splitlines())  # fmt: skip
    assert code == 0
    assert lines | {"made-by": "", "proven-with": ""} == {
        "model": "tagger (torch:helpers.networks:tagger)",
        "source": "path:checkpoint at sha256:" + "0" * 64,
        "licence": "not declared",
        "weights": f"{manifest.weights.bytes:,} bytes in {manifest.weights.tensors} tensors "
                   f"({manifest.weights.dtypes['F32']} x F32, 1 x I64)",
        "tied": "5 names share another's tensor",
        "files": f"2, {total:,} bytes",
        "digest": manifest.set_digest,
        "made-by": "", "proven-with": "",
    }  # fmt: skip


def test_inspect_lists_every_tensor_once(tagger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = prebake(capsys, "inspect", tagger / "tagger", "--tensors")
    names = [line.split()[0] for line in out.splitlines() if line.startswith("  ")]
    stored = [name for file in ("model.safetensors", "buffers.safetensors")
              for name in sorted(read_header(tagger / "tagger" / file).entries)]  # fmt: skip
    assert names == stored
    assert "  embedding.weight  F32 [11, 6]\n" in out


def test_inspect_gives_json(tagger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = prebake(capsys, "inspect", tagger, "--json", "--tensors")
    (document,) = json.loads(out)
    assert document["name"] == "tagger"
    assert document["weights"]["aliases"]["out.weight"] == "embedding.weight"
    assert {"name": "table", "dtype": "F32", "shape": [11], "file": "buffers.safetensors"} in document["tensors"]


def test_inspect_and_help_import_no_framework(tagger: Path) -> None:
    script = (
        "import sys; from prebake.__main__ import main\n"
        "main(['inspect', sys.argv[1], '--tensors'])\n"
        "try: main(['serve', '--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'transformers', 'numpy', 'PIL', 'easyocr', 'prebake_build') "
        "if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tagger)], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


def test_inspect_of_damaged_weights_says_so(tagger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = shutil.copytree(tagger, tmp_path / "models")
    weights = root / "tagger" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    code, _, err = prebake(capsys, "inspect", root, "--tensors")
    assert code == 1
    assert f"prebake: error: {weights}: its header describes " in err


def test_inspect_of_a_folder_without_manifest_names_it(
    tagger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(tagger, tmp_path / "models")
    (root / "tagger" / "manifest.json").unlink()
    assert prebake(capsys, "inspect", root) == (
        1, "", f"prebake: error: {root}/tagger/manifest.json: there is no such file (expected a manifest)\n"
    )  # fmt: skip


def test_a_folder_that_may_not_be_read_is_said(tagger: Path, tmp_path: Path) -> None:
    root = shutil.copytree(tagger, tmp_path / "models")
    (root / "tagger").chmod(0)
    try:
        done = without_privileges("inspect", root / "tagger")
    finally:
        (root / "tagger").chmod(0o755)
    assert (done.returncode, done.stdout, "Traceback" in done.stderr) == (1, "", False)
    assert done.stderr.endswith("Permission denied\n")


def test_a_reader_that_has_had_enough_is_no_error(tagger: Path) -> None:
    done = subprocess.run(
        f"{sys.executable} -m prebake inspect {tagger} --tensors --json | true", shell=True, capture_output=True,
        text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert done.stderr == ""
