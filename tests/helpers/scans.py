"""What tests of `prebake scan` start, and read of what it wrote."""

from __future__ import annotations

import sys

WORKER = """
import sys, time
from prebake.adopt.loads import Load, record
record(Load(library="torch", function="torch.load", uri="url:https://example.org/net.pth", class_="tensors",
            seconds=0.25))
print("loaded", flush=True)
"""
"""A worker without HTTP, whose load is recorded as a hook would."""


def worker(then: str = "") -> list[object]:
    return ["--", sys.executable, "-c", WORKER + then]


def ours(text: str) -> str:
    """The lines that `prebake` wrote, without those of the service."""
    return "".join(line + "\n" for line in text.splitlines() if line.startswith(("prebake:", "Wrote", "models.toml")))
