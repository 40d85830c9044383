"""`prebake slim` and its module for builds: what they change, print and refuse."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from importlib.metadata import Distribution
from pathlib import Path

import pytest

from helpers.installed import environment, install, library, record_hash
from prebake.errors import ConfigError
from prebake_build.slimming import command
from prebake_build.slimming.__main__ import main
from prebake_build.slimming.rules import read_rules

LIBRARY = library([(".text", b"t" * 100, True), (".symtab", b"s" * 9000, False)])


@pytest.fixture
def prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", str(tmp_path))  # no compiler
    monkeypatch.delenv("SLIM", raising=False)
    monkeypatch.delenv("SLIM_KEEP", raising=False)
    prefix = tmp_path / "env"
    site = environment(prefix)
    install(site, "torch", {"torch/__init__.py": "", "torch/include/a.h": "h" * 1000, "torch/include/b/c.h": "h" * 500,
                            "torch/lib/libtorch_cpu.so": LIBRARY}, "2.13.0+cpu")  # fmt: skip
    install(site, "other_one", {"other/__init__.py": "", "other/tests/test_x.py": "x" * 200, "other/py.typed": ""})
    return prefix


def files(prefix: Path) -> set[str]:
    site = prefix / "lib" / "python3.11" / "site-packages"
    return {path.relative_to(site).as_posix() for path in site.rglob("*") if ".dist-info" not in str(path)}


def test_it_removes_and_strips_and_prints_what_by_rule(prefix: Path, capsys: pytest.CaptureFixture[str]) -> None:
    library = prefix / "lib/python3.11/site-packages/torch/lib/libtorch_cpu.so"
    before = library.stat().st_size
    assert main([str(prefix)]) == 0
    saved = before - library.stat().st_size
    assert files(prefix) == {"torch", "torch/__init__.py", "torch/lib", "torch/lib/libtorch_cpu.so",
                             "other", "other/__init__.py", "other/py.typed"}  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        "  bytes  files  rule           packages",
        f"{saved / 1000:.3g} kB      1  symbols        torch",
        " 1.5 kB      2  torch-headers  torch",
        "  200 B      1  tests          other-one",
    ]
    assert lines[4].endswith(f" of packages, {(saved + 1700) / 1000:.3g} kB less: {lines[4].rpartition(': ')[2]}")


def test_record_is_true_afterwards(prefix: Path) -> None:
    main([str(prefix)])
    site = prefix / "lib" / "python3.11" / "site-packages"
    for name in ("torch-2.13.0+cpu", "other_one-1.0"):
        found = Distribution.at(site / f"{name}.dist-info")
        assert [str(path) for path in found.files or () if not Path(str(found.locate_file(path))).exists()] == []
        rows = list(csv.reader((site / f"{name}.dist-info" / "RECORD").read_text().splitlines()))
        for path, digest, size in rows[:-1]:
            data = (site / path).read_bytes()
            assert (record_hash(data), str(len(data))) == (digest, size)
        assert rows[-1] == [f"{name}.dist-info/RECORD", "", ""]
        assert (site / f"{name}.dist-info" / "licenses" / "LICENSE").exists()


def test_a_second_run_changes_nothing(prefix: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(prefix)])
    before = files(prefix)
    capsys.readouterr()
    assert main([str(prefix)]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert ", 0 B less: " in line
    assert files(prefix) == before


def test_a_run_after_an_interrupted_one_corrects_record(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("prebake_build.slimming.apply.correct_record", stop)
        with pytest.raises(KeyboardInterrupt):
            main([str(prefix)])
    main([str(prefix)])
    test_record_is_true_afterwards(prefix)


def test_a_dry_run_prints_the_same_and_changes_nothing(prefix: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(prefix)
    assert main(["--dry-run", str(prefix)]) == 0
    planned = capsys.readouterr().out
    assert files(prefix) == before
    main([str(prefix)])
    assert capsys.readouterr().out == planned


def test_json_has_each_rule_with_its_reason(prefix: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json", "--dry-run", str(prefix)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["applied"], [entry["rule"] for entry in document["rules"]]) == (
        False, ["symbols", "torch-headers", "tests"],
    )  # fmt: skip
    headers = document["rules"][1]
    assert (headers["bytes"], headers["files"], headers["packages"]) == (1500, 2, {"torch": 1500})
    assert headers["reason"].startswith("compilers read headers")
    assert document["before"] - document["after"] == sum(entry["bytes"] for entry in document["rules"])


@pytest.mark.parametrize("way", ["option", "variable"])
def test_patterns_keep_files(prefix: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "variable":
        monkeypatch.setenv("SLIM_KEEP", "torch/include/b/* *.so")
    main([str(prefix), *(["--keep", "torch/include/b/*", "--keep", "*.so"] if way == "option" else [])])
    assert {"torch/include/b/c.h", "torch/lib/libtorch_cpu.so"} <= files(prefix)
    assert "torch/include/a.h" not in files(prefix)


def test_slim_0_keeps_everything(
    prefix: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(prefix)
    monkeypatch.setenv("SLIM", "0")
    assert main([str(prefix)]) == 0
    assert capsys.readouterr() == ("", "SLIM=0: everything stays.\n")
    assert files(prefix) == before


def test_a_target_folder_is_an_environment_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install(tmp_path, "a", {"a/__init__.py": "", "a/tests/x.py": "x"})
    assert main([str(tmp_path)]) == 0
    assert not (tmp_path / "a" / "tests").exists()


def test_rules_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--explain"]) == 0
    text = capsys.readouterr().out
    for rule in read_rules().rules:
        assert f"{rule.name}: {rule.action} " in text
        assert rule.reason and rule.breaks
    assert main(["--explain", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(rule["name"], rule["why"]) for rule in listed] == [(rule.name, rule.reason) for rule in read_rules().rules]


# --- refusals ---------------------------------------------------------------------------------------------------


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = main(arguments)
    return code, capsys.readouterr().err


def test_no_environment_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused([], capsys) == (
        2, "prebake: error: which environment? Name its folder: prebake slim --dry-run .venv\n",
    )  # fmt: skip
    assert refused([str(tmp_path)], capsys) == (
        2, f"prebake: error: {tmp_path}: no packages are installed there (expected lib/python3.…/site-packages with "
        "*.dist-info/RECORD): name the folder of a virtual environment\n",
    )  # fmt: skip


def test_its_own_environment_is_refused(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(prefix / "lib/python3.11/site-packages")])
    before = files(prefix)
    with pytest.raises(ConfigError) as caught:
        command.run(argparse.Namespace(explain=False, prefix=prefix, dry_run=False, keep=[], json=False))
    assert str(caught.value) == (
        f"{prefix}: this command runs in that environment: name one of an image, or use --dry-run"
    )
    assert files(prefix) == before


def test_a_damaged_record_is_refused_before_anything_is_removed(
    prefix: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = prefix / "lib/python3.11/site-packages/other_one-1.0.dist-info/RECORD"
    record.write_text("one,two\n")
    before = files(prefix)
    assert refused([str(prefix)], capsys) == (
        1, f"prebake: error: {record}: row 1: expected path, hash and size, found 2 fields\n",
    )  # fmt: skip
    assert files(prefix) == before


def test_a_folder_that_cannot_be_changed_is_named(
    prefix: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    code, text = refused([str(prefix)], capsys)
    assert (code, text.endswith("tests/test_x.py: cannot change it: Permission denied\n")) == (1, True), text
