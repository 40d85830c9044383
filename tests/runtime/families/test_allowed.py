"""A manifest names code only where the application allows it: by argument, command line or environment."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import prebake
from helpers.baking import prebake as command
from helpers.runtime_fakes import bake_module, change_manifest
from prebake.errors import ConfigError
from prebake.families.allowed import allowed_modules, covers, find_factory

REFUSED = (
    "{folder}: class: \"{factory}\" is code that the application does not allow (allowed: {allowed}): a manifest alone "
"must not decide what is imported. If you trust it, allow its module: PREBAKE_ALLOW={module}, --allow {module}, or "
    'allow=["{module}"] for prebake.Models and prebake.load'
)  # fmt: skip

FAKES = "helpers.runtime_fakes"


@pytest.fixture(autouse=True)
def _nothing_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREBAKE_ALLOW")


@pytest.fixture
def _no_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands run in this process and leave its garbage collector and its imports as they are."""
    monkeypatch.setattr("prebake.startup.quickstart.begin", lambda: None)
    monkeypatch.setattr("prebake.startup.quickstart.collector.pause", lambda *_: None)
    monkeypatch.setattr("prebake.startup.quickstart.collector.resume", lambda *_: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model whose class is `helpers.runtime_fakes:plain`, alone under its root."""
    return bake_module(tmp_path / "models", "model", "helpers.runtime_fakes:plain")[0]


def put(monkeypatch: pytest.MonkeyPatch, folder: Path, **files: str) -> None:
    """A package `app` of these modules, importable for the test."""
    (folder / "app").mkdir(parents=True)
    for name, text in {"__init__": "", **files}.items():
        (folder / "app" / f"{name}.py").write_text(text)
    for name in [name for name in sys.modules if name.partition(".")[0] == "app"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(folder)


def refused(folder: Path, **options: Any) -> str:
    with pytest.raises(ConfigError) as error:
        prebake.load(folder, **options)
    return str(error.value)


# --- who allows --------------------------------------------------------------------------------------------------


def test_nothing_is_allowed_unless_it_is_named(folder: Path) -> None:
    expected = REFUSED.format(
        folder=folder, factory="helpers.runtime_fakes:plain", allowed="none", module="helpers.runtime_fakes"
    )
    assert refused(folder) == expected
    with pytest.raises(ConfigError) as error:
        prebake.Models(folder.parent)["model"]
    assert str(error.value) == expected


def test_the_message_lists_what_is_allowed(folder: Path) -> None:
    assert refused(folder, allow=["networks", "app.models"]) == REFUSED.format(
        folder=folder,
        factory="helpers.runtime_fakes:plain",
        allowed="networks, app.models",
        module="helpers.runtime_fakes",
    )


@pytest.mark.parametrize(
    "allow", [["helpers.runtime_fakes"], ("networks", "helpers.runtime_fakes"), "networks, helpers.runtime_fakes"]
)
def test_an_argument_allows(folder: Path, allow: Any) -> None:
    assert prebake.load(folder, allow=allow).tier == "mapped"
    assert prebake.Models(folder.parent, allow=allow)["model"].tier == "mapped"


@pytest.mark.parametrize(
    "value", ["helpers.runtime_fakes", "networks,helpers.runtime_fakes", " networks , helpers.runtime_fakes ,"]
)
def test_the_environment_allows_beside_an_argument(folder: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("PREBAKE_ALLOW", value)
    assert prebake.load(folder, allow=["app"]).tier == "mapped"
    assert prebake.Models(folder.parent)["model"].tier == "mapped"


@pytest.mark.usefixtures("_no_start")
def test_the_command_line_allows(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check = ("check", "--root", folder.parent, "--json")
    code, _, err = command(capsys, *check, "--allow", "networks")
    expected = REFUSED.format(
        folder=folder, factory="helpers.runtime_fakes:plain", allowed="networks", module="helpers.runtime_fakes"
    )  # fmt: skip
    assert (code, f"prebake: error: {expected}" in err) == (2, True)
    assert command(capsys, *check, "--allow", "networks", "--allow", "helpers.runtime_fakes")[0] == 0


@pytest.mark.usefixtures("_no_start")
def test_the_service_allows(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    tiers: list[str] = []
    monkeypatch.setattr("image_analyzer.server.serve", lambda service, **_: tiers.append(service.models["model"].tier))
    assert command(capsys, "serve", "--root", folder.parent, "--lazy", "--allow", "helpers.runtime_fakes")[0] == 0
    assert tiers == ["mapped"]


@pytest.mark.parametrize("name", ["os:system", "app.", ".app", "app models", "1app", "-", "app/models"])
def test_what_is_no_module_cannot_be_allowed(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    expected = f'"{name}" is not a module name (expected a name such as app or my_package.networks, without the class)'
    with pytest.raises(ConfigError) as error:
        allowed_modules([name])
    assert str(error.value) == f"allow: {expected}"
    monkeypatch.setenv("PREBAKE_ALLOW", name)
    with pytest.raises(ConfigError) as error:
        allowed_modules()
    assert str(error.value) == f"PREBAKE_ALLOW: {expected}"


# --- what a name covers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("allow", "module", "expected"),
    [
        (["app"], "app", True),
        (["app"], "app.networks.small", True),
        (["app"], "application", False),
        (["app.networks"], "app", False),
        (["app.networks"], "app.networks", True),
        (["app.networks"], "app.networks_old", False),
        (["app"], "app.__main__", False),
        (["app"], "app.tools.__main__", False),
        (["app.__main__"], "app.__main__", True),
        (["__main__"], "__main__", True),
        (["app"], "", False),
        (["app"], ".app", False),
        ([], "app", False),
    ],
)
def test_a_package_covers_its_submodules_and_no_program(allow: list[str], module: str, expected: bool) -> None:
    assert covers(allow, module) is expected


def test_a_network_may_be_defined_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, tmp_path, __init__="from torch.nn import Linear")
    assert find_factory("app:Linear", ["app"], "where") is torch.nn.Linear


def test_a_function_is_found_where_a_covered_module_defines_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, tmp_path, __init__="from app.inner import build", inner="def build(): ...")
    assert find_factory("app:build", ["app"], "where").__module__ == "app.inner"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("from os import system as x", "app:x is defined in posix, which is not allowed (allowed: app): bake it as "
         "posix:system and allow that module, or write a function in app that calls it"),
        ("from subprocess import Popen as x", "app:x is defined in subprocess, which is not allowed (allowed: app): "
         "bake it as subprocess:Popen and allow that module, or write a function in app that calls it"),
        ("from torch.hub import load as x", "app:x is defined in torch.hub, which is not allowed (allowed: app): bake "
         "it as torch.hub:load and allow that module, or write a function in app that calls it"),
        ("import os as x", "app:x is a module, but a factory must be a class or a function: write a "
         "function that returns the module"),
        ("import functools, os; x = functools.partial(os.system, 'true')", "app:x is a partial, but a factory must be "
         "a class or a function: write a function that returns the module"),
        ("raise SystemExit(3)", "cannot import app:x: app is a program: its import raised SystemExit(3)"),
        ("", "cannot import app:x: module 'app' has no attribute 'x'"),
        ("xx = 1", "cannot import app:x: module 'app' has no attribute 'x': did you mean \"xx\"?"),
        ("import os; os.nothing", "cannot import app:x: module 'os' has no attribute 'nothing' (is its package "
         "installed beside prebake?)"),
    ],
)  # fmt: skip
def test_what_an_allowed_module_only_passes_on_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: str
) -> None:
    put(monkeypatch, tmp_path, __init__=text)
    with pytest.raises(ConfigError) as error:
        find_factory("app:x", ["app"], "where")
    assert str(error.value) == f"where: {expected}"


def test_arguments_are_a_table(folder: Path) -> None:
    change_manifest(folder, options={"arguments": ["touch"]})
    with pytest.raises(prebake.PrebakeError) as error:
        prebake.load(folder, allow=["helpers.runtime_fakes"])
    assert str(error.value) == f"{folder}: options.arguments: expected a table, found a list"
