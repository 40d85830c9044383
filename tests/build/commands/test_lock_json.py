"""`prebake lock --json`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.baking import LINEAR, declare, prebake


def test_locked_models_and_differences_are_told_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "weights").write_bytes(b"x" * 10)
    models = declare(tmp_path, LINEAR)
    code, out, _ = prebake(capsys, "lock", "--models", models, "--json")
    (found,) = json.loads(out)
    assert found.pop("revision").startswith("sha256:")
    assert (code, found) == (0, {"name": "m", "source": "path:c", "files": 1, "bytes": 10})
    code, out, _ = prebake(capsys, "lock", "--models", models, "--check", "--json")
    assert (code, json.loads(out)) == (0, [])
    (tmp_path / "c" / "weights").write_bytes(b"y" * 10)
    code, out, _ = prebake(capsys, "lock", "--models", models, "--check", "--json")
    assert code == 1
    assert len(json.loads(out)) >= 1
