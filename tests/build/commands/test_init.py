"""`prebake init`: what it writes, what it refuses, and how it tells drift from edits."""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers import ROOT
from prebake.errors import ConfigError
from prebake_build.commands import init

MODELS = '[models.caption]\nsource = "hf:org/blip@main"\n\n[models.ocr]\nsource = "easyocr:ko+en"\n'
FILES = ("Dockerfile", "docker-bake.hcl", ".dockerignore")
COMMAND = ("--python", "3.11", "--", "uvicorn", "app:app", "--host", "0.0.0.0")


def direct_url(monkeypatch: pytest.MonkeyPatch, text: str | None) -> None:
    """What pip noted about where it has installed Prebake from."""
    monkeypatch.setattr(init, "distribution", lambda name: SimpleNamespace(read_text={"direct_url.json": text}.get))


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prebake is from an index."""
    direct_url(monkeypatch, None)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "Captions"
    folder.mkdir()
    (folder / "models.toml").write_text(MODELS)
    (folder / "requirements.txt").write_text("fastapi\nuvicorn[standard]>=0.30\n")
    monkeypatch.chdir(folder)
    return folder


def run(*arguments: str) -> int:
    top = argparse.ArgumentParser()
    init.add(top.add_subparsers())
    options = top.parse_args(["init", *arguments])
    return int(options.run(options))


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_it_writes_three_files_and_says_what_comes_next(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*COMMAND) == 0
    assert sorted(path.name for path in project.iterdir()) == sorted((*FILES, "models.toml", "requirements.txt"))
    assert capsys.readouterr() == ("", (
        "Wrote Dockerfile.\nWrote docker-bake.hcl.\nWrote .dockerignore.\n"
        "Next: `prebake lock` pins the models, `docker buildx bake` builds the image.\n"
    ))  # fmt: skip


@pytest.mark.parametrize("place", ["../my prebake", "vendor/prebake"])
def test_the_checkout_that_prebake_was_installed_from_is_in_the_command_that_builds(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    checkout = (project / place).resolve()
    direct_url(monkeypatch, json.dumps({"dir_info": {}, "url": (checkout / "build").as_uri()}))
    assert init._build(project) == "docker buildx bake"  # the checkout is gone
    for name in ("runtime", "build"):
        (checkout / name).mkdir(parents=True)
        (checkout / name / "pyproject.toml").touch()
    assert run(*COMMAND) == 0
    build = {
        "../my prebake": f"PREBAKE='{checkout}' docker buildx bake --allow=fs.read='{checkout}'",
        "vendor/prebake": "PREBAKE=./vendor/prebake docker buildx bake",
    }[place]
    assert f"Next: `prebake lock` pins the models, `{build}` builds the image.\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["{}", "[]", "{", '{"url": "https://host/prebake.whl"}', '{"url": "file:///absent/build"}']
)
def test_a_prebake_from_elsewhere_needs_no_checkout(monkeypatch: pytest.MonkeyPatch, text: str | None) -> None:
    direct_url(monkeypatch, text)
    assert init._build(Path()) == "docker buildx bake"


def test_what_it_added_to_the_command_is_said(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--", "uvicorn", "app:app") == 0
    assert "Note: added --host 0.0.0.0: by default, uvicorn can't be reached from outside.\n" in capsys.readouterr().err


def test_an_existing_file_is_named_and_compared_and_nothing_is_written(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "Dockerfile").write_text("FROM mine\n")
    assert run(*COMMAND) == 1
    assert sorted(path.name for path in project.iterdir()) == ["Dockerfile", "models.toml", "requirements.txt"]
    assert (project / "Dockerfile").read_text() == "FROM mine\n"
    printed = capsys.readouterr()
    assert printed.err == (
        "Dockerfile exists already; init overwrites nothing:\n"
        "No file was written. Move them away, or apply the diff with `patch -p0`.\n"
    )
    assert printed.out.startswith("--- Dockerfile\n+++ Dockerfile\n@@ ")
    assert "\n-FROM mine\n" in printed.out


def test_the_same_again_writes_what_is_missing(project: Path) -> None:
    assert run(*COMMAND) == 0
    written = (project / ".dockerignore").read_text()
    (project / ".dockerignore").unlink()
    assert run(*COMMAND) == 0
    assert (project / ".dockerignore").read_text() == written


def test_print_writes_nothing(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--print", *COMMAND) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("==> ")] == [
        f"==> {name} <==" for name in FILES
    ]
    assert not (project / "Dockerfile").exists()


def test_check_finds_no_drift_with_the_options_that_were_written_down(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--name", "captions", "--port", "9000", "--ready", "/up", *COMMAND) == 0
    capsys.readouterr()
    assert run("--check") == 0
    assert capsys.readouterr() == ("", "".join(f"{name} is up to date.\n" for name in FILES))


def test_edits_are_no_drift(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(*COMMAND)
    edit(project / "Dockerfile", "USER 65532:65532", "USER 1000:1000")
    capsys.readouterr()
    assert run("--check") == 0
    assert capsys.readouterr().err.splitlines()[0] == "Dockerfile has changes of yours; its template is the same."


def test_a_new_model_is_drift_of_the_bake_file_and_the_diff_applies(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(*COMMAND)
    with (project / "models.toml").open("a") as models:
        models.write('\n[models.sentences]\nsource = "hf:org/minilm"\n')
    capsys.readouterr()
    assert run("--check") == 1
    printed = capsys.readouterr()
    assert printed.err.splitlines()[1] == (
        "docker-bake.hcl has drifted: init writes something else now. The diff applies with `patch -p0`."
    )
    assert '+variable "MODELS" { default = "caption,ocr,sentences" }' in printed.out
    subprocess.run(["patch", "-p0", "-s"], input=printed.out, text=True, check=True)
    assert run("--check") == 0


def test_drift_of_an_edited_file_says_that_edits_are_in_the_diff(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(*COMMAND)
    edit(project / "Dockerfile", "USER 65532:65532", "USER 1000:1000")
    edit(project / "requirements.txt", "fastapi", "fastapi\n-r more.txt")
    (project / "more.txt").write_text("torch\n")
    capsys.readouterr()
    assert run("--check") == 1
    printed = capsys.readouterr()
    assert printed.err.splitlines()[0] == (
        "Dockerfile has drifted: init writes something else now, and you changed the file: the diff takes your changes "
        "back as well."
    )
    assert "+USER 65532:65532" in printed.out


def test_files_of_others_are_told_apart(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "Dockerfile").write_text("FROM mine\n")
    assert run("--check", *COMMAND) == 1
    assert capsys.readouterr().err.splitlines() == [
        "Dockerfile was not written by prebake init: the diff turns it into what init writes.",
        "docker-bake.hcl is missing: `prebake init` writes it.",
        ".dockerignore is missing: `prebake init` writes it.",
    ]


def test_a_first_line_that_was_broken_is_said(project: Path) -> None:
    run(*COMMAND)
    edit(project / "Dockerfile", "--python 3.11", "--pithon 3.11")
    with pytest.raises(ConfigError) as error:
        run("--check")
    assert str(error.value).startswith("Dockerfile: can't read its first line: prebake init --pithon 3.11 -- uvicorn")


def test_without_a_models_file_the_way_out_is_said(project: Path) -> None:
    (project / "models.toml").unlink()
    with pytest.raises(ConfigError) as error:
        run(*COMMAND)
    assert (
        str(error.value)
        == "models.toml: there is no such file: `prebake scan -- COMMAND` writes one, or name another with --models"
    )
    assert not (project / "Dockerfile").exists()


def test_a_port_out_of_range_is_wrong_use(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run("--port", "70000", *COMMAND)
    assert ended.value.code == 2
    assert "argument --port: invalid port between 1 and 65535 value: '70000'" in capsys.readouterr().err


def test_this_repository_is_built_by_what_init_writes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    assert run("--check") == 1  # .dockerignore is the workspace's own
    printed = capsys.readouterr()
    assert printed.err.splitlines() == [
        "Dockerfile is up to date.",
        "docker-bake.hcl is up to date.",
        ".dockerignore was not written by prebake init: the diff turns it into what init writes.",
    ]
    allowed = {line for line in printed.out.splitlines() if line.startswith("+!")}
    assert allowed <= {"+!service", "+!constraints.txt"}  # which the workspace's own names file by file
