"""What the rules find in an image of some layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from helpers.oci_images import GOOD_CONFIG, LayerOf, write_image
from prebake_build.images.checks.check import check
from prebake_build.images.checks.findings import Finding
from prebake_build.images.oci_layout import Layout

PACKAGES = "opt/venv/lib/python3.11/site-packages"
CODE = LayerOf({"app/main.py": b"print()", "app/a.py": b"", "app/b.py": b""})


def found(tmp_path: Path, *layers: LayerOf, config: dict[str, Any] | None = None, **options: Any) -> list[Finding]:
    history = options.pop("history", ())
    folder = write_image(tmp_path / "image", *layers, config={**GOOD_CONFIG, **(config or {})}, history=history)
    return check(Layout.open(folder).image(), **options)


def one(tmp_path: Path, *layers: LayerOf, **options: Any) -> Finding:
    (finding,) = found(tmp_path, *layers, **options)
    return finding
