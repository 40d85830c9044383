"""Names that both halves and the image agree on: files, folders, environment variables.

::

    /models/                     PREBAKE_ROOT
    └── caption/                 one baked model, one image layer
        ├── manifest.json        MANIFEST
        ├── model.safetensors    WEIGHTS: what the module's state dict holds
        ├── buffers.safetensors  BUFFERS: tensors that the module has but its state dict does not
        ├── structure.json       STRUCTURE: what its constructor made, without tensors
        └── config.json …        the small files that the family needs
"""

from __future__ import annotations

import os
import re
from pathlib import Path

MANIFEST = "manifest.json"
WEIGHTS = "model.safetensors"
BUFFERS = "buffers.safetensors"
STRUCTURE = "structure.json"

ENV_ROOT = "PREBAKE_ROOT"  # and readahead.ENV, in a script that imports nothing
ENV_DEFER = "PREBAKE_DEFER"
ENV_MEMO = "PREBAKE_MEMO"
ENV_PREFETCH = "PREBAKE_PREFETCH"
ENV_TIERS = "PREBAKE_TIERS"
ENV_WARM = "PREBAKE_WARM"
ENV_ALLOW = "PREBAKE_ALLOW"
ENV_CACHE = "PREBAKE_CACHE"
ENV_BUDGET = "PREBAKE_BUDGET"
ENV_BASELINE = "PREBAKE_BASELINE"

DEFAULT_ROOT = "/models"
DEFAULT_PORT = 8000

PAGE = 4096
"""Bytes. The data part of every baked safetensors file starts on a multiple of this."""

MODEL_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
"""A model's name is a folder, a build target and a stage name: lower case, no separators at the ends."""


def default_root() -> Path:
    """The folder of baked models: `PREBAKE_ROOT`, else `/models`."""
    return Path(os.environ.get(ENV_ROOT) or DEFAULT_ROOT)


def is_inside(path: str) -> bool:
    """Whether a relative POSIX path stays in its folder: no root, drive, backslash, empty or dot parts."""
    return not path.startswith("/") and not any(
        part in ("", ".", "..") or "\\" in part or ":" in part or "\0" in part for part in path.split("/")
    )
