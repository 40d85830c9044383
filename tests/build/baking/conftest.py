"""What tests of bakes count."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from prebake_build.baking import bake as baking


@pytest.fixture
def conversions(in_process: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Counter[str]:
    """Model → how often it was converted."""
    counted, work = Counter[str](), baking._work

    def count(job: Any, *rest: Any) -> None:
        counted[job.name] += 1
        work(job, *rest)

    monkeypatch.setattr(baking, "_work", count)
    caplog.set_level("INFO")
    return counted
