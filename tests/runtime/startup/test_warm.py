"""Whether one large file is in the page cache, where the file system cannot tell."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from helpers.page_cache import forget
from prebake.startup import warm
from prebake.startup.warm import seems_warm


def test_a_file_system_that_cannot_tell_is_judged_by_what_the_disk_gave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As overlayfs: `RWF_NOWAIT` is refused."""
    monkeypatch.setattr(warm, "_can_tell", lambda _: False)
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(80 << 20))
    assert any(_read_and_asked(path) for _ in range(20))  # other processes may take the memory or the processor
    forget(path)
    assert not seems_warm(path)


def test_an_empty_file_is_warm_and_an_absent_one_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm, "_can_tell", lambda _: False)
    (tmp_path / "empty").write_bytes(b"")
    assert seems_warm(tmp_path / "empty")
    with pytest.raises(FileNotFoundError):
        seems_warm(tmp_path / "absent")


def _read_and_asked(path: Path) -> bool:
    path.read_bytes()
    return seems_warm(path)
