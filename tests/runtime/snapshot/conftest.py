from __future__ import annotations

from pathlib import Path

import pytest

from helpers.snapshots import Program, build_programs, skip_where_there_are_none


@pytest.fixture(scope="session")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the two programs."""
    skip_where_there_are_none()
    return build_programs(tmp_path_factory.mktemp("snapshot-programs"))


@pytest.fixture
def program(tmp_path: Path, native: Path) -> Program:
    return Program(tmp_path / "program", native)
