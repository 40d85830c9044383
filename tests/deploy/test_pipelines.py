"""Pipelines and the compose file fit their schemas, and every `prebake` command in them exists with its options."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import urllib.request
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers import ROOT
from helpers.image_builds import NAME, Build

DEPLOY = ROOT / "deploy"
GITHUB, GITLAB, COMPOSE = DEPLOY / "ci" / "github.yaml", DEPLOY / "ci" / "gitlab.yaml", DEPLOY / "compose.yaml"
STEPS = ("lock", "bake", "sign", "image", "sbom", "measure", "probes")
"""What a pipeline has to do, each by its command."""


@pytest.mark.parametrize(
    ("path", "options"),
    [(GITHUB, ["vendor.github-workflows"]), (GITLAB, ["vendor.gitlab-ci", "--data-transform", "gitlab-ci"]),
     (COMPOSE, ["vendor.compose-spec"])],
)  # fmt: skip
def test_it_fits_its_schema(path: Path, options: list[str]) -> None:
    pytest.importorskip("check_jsonschema", reason="needs the package check-jsonschema")
    from check_jsonschema import main

    with pytest.raises(SystemExit) as ended:
        main(["--builtin-schema", *options, str(path)])
    assert ended.value.code in (0, None)


def scripts(path: Path) -> list[str]:
    document = yaml.safe_load(path.read_text())
    if path == GITHUB:
        return [step["run"] for job in document["jobs"].values() for step in job["steps"] if "run" in step]
    return [line for job in document.values() if isinstance(job, dict) for line in job.get("script", [])]


def commands(path: Path) -> Iterator[list[str]]:
    """The `prebake` commands of a pipeline, with variables replaced by a word."""
    for script in scripts(path):
        text = re.sub(r"\$\{\{.*?\}\}|\$\{\w+[^}]*\}|\$\w+", "word", script)
        for line in text.splitlines():
            for part in re.split(r";|&&|\bthen\b|>", line):
                words = shlex.split(part)
                if words[:1] == ["prebake"]:
                    yield words[1:]


@pytest.mark.parametrize("path", [GITHUB, GITLAB])
def test_its_commands_exist_with_their_options(path: Path) -> None:
    found = list(commands(path))
    assert {words[0] for words in found} == set(STEPS)
    for words in found:
        parser = argparse.ArgumentParser()
        import_module(f"prebake_build.commands.{words[0]}").add(parser.add_subparsers())
        parser.parse_args(words)  # SystemExit for anything unknown


@pytest.mark.parametrize("path", [GITHUB, GITLAB])
def test_secrets_are_in_no_command(path: Path) -> None:
    for script in scripts(path):
        assert not re.search(r"\$\{\{\s*secrets\.", script)
        assert not re.search(r"(?:--password|-p)[ =]", script)


def test_github_actions_get_no_more_rights_than_they_need() -> None:
    workflow = yaml.safe_load(GITHUB.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    assert {name: job.get("permissions") for name, job in workflow["jobs"].items()} == {
        "lock": None, "image": {"contents": "read", "packages": "write"}
    }  # fmt: skip


def test_compose_runs_it_hardened_and_on_this_machine_only() -> None:
    service = yaml.safe_load(COMPOSE.read_text())["services"]["prebake"]
    assert (service["read_only"], service["cap_drop"], service["security_opt"]) == (
        True, ["ALL"], ["no-new-privileges:true"]
    )  # fmt: skip
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])


@pytest.mark.docker
def test_compose_brings_the_service_up(engine: Any, built: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    if subprocess.run(["docker", "compose", "version"], capture_output=True).returncode:
        pytest.skip("docker has no compose plugin")
    monkeypatch.setenv("IMAGE", NAME)
    monkeypatch.setenv("PORT", "18765")
    compose = ["docker", "compose", "--project-name", f"{NAME}-compose", "--file", str(COMPOSE)]
    try:
        up = subprocess.run([*compose, "up", "--wait", "--wait-timeout", "180"], capture_output=True, text=True)
        assert up.returncode == 0, up.stderr
        with urllib.request.urlopen("http://127.0.0.1:18765/readyz", timeout=10) as answer:
            assert answer.status == 200
    finally:
        subprocess.run([*compose, "down", "--timeout", "5"], capture_output=True)
