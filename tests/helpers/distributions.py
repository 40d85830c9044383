"""Distributions that a test installs: folders with modules and a .dist-info, on `sys.path` while the test runs."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass
class Distributions:
    """Installs into `site`; the fixture `distributions` puts it on the path and clears up."""

    site: Path
    monkeypatch: pytest.MonkeyPatch

    def add(
        self,
        name: str,
        entry_points: Mapping[str, Mapping[str, str]],
        files: Mapping[str, str | bytes],
        *,
        version: str = "1.0",
        metadata: str = "",
    ) -> Path:
        """Install one; `files` are paths below the site folder. Returns the site folder."""
        record = self.site / f"{name.replace('-', '_')}-{version}.dist-info"
        record.mkdir(parents=True)
        (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{metadata}")
        (record / "entry_points.txt").write_text(
            "".join(
                f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in entries.items())
                for group, entries in entry_points.items()
            )
        )
        for path, content in files.items():
            (self.site / path).parent.mkdir(parents=True, exist_ok=True)
            (self.site / path).write_bytes(content.encode() if isinstance(content, str) else content)
        (record / "RECORD").write_text("".join(f"{path},,\n" for path in [*files, f"{record.name}/METADATA"]))
        (record / "top_level.txt").write_text(
            "".join(sorted({f"{path.partition('/')[0].removesuffix('.py')}\n" for path in files}))
        )
        if str(self.site) not in sys.path:
            self.monkeypatch.syspath_prepend(str(self.site))
        importlib.invalidate_caches()
        return self.site
