from __future__ import annotations

from pathlib import Path

import pytest

from helpers.snapshots import Program


@pytest.fixture
def program(tmp_path: Path, native: Path) -> Program:
    return Program(tmp_path / "program", native)
