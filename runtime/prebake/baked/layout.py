"""Names that the runtime, the build and the image share: files, folders, environment variables.

::

    /models/                     PREBAKE_ROOT
    ├── prebake.sig              SIGNATURE: of all manifests, if they are signed
    └── caption/                 one baked model, one image layer
        ├── manifest.json        MANIFEST
        ├── model.safetensors    WEIGHTS: the module's state dict
        │                        (of a large model: model-00001-of-00003.safetensors … and their index)
        ├── buffers.safetensors  BUFFERS: the module's tensors that are not in its state dict
        ├── structure.json       STRUCTURE: the constructed module without its tensors
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
SIGNATURE = "prebake.sig"

ENV_ROOT = "PREBAKE_ROOT"  # readahead.ENV is defined in its module, which imports nothing
ENV_DEFER = "PREBAKE_DEFER"
ENV_MEMO = "PREBAKE_MEMO"
ENV_PREFETCH = "PREBAKE_PREFETCH"
ENV_TIERS = "PREBAKE_TIERS"
ENV_WARM = "PREBAKE_WARM"
ENV_ALLOW = "PREBAKE_ALLOW"
ENV_VERIFY_KEY = "PREBAKE_VERIFY_KEY"
ENV_CACHE = "PREBAKE_CACHE"
ENV_BUDGET = "PREBAKE_BUDGET"
ENV_BASELINE = "PREBAKE_BASELINE"

DEFAULT_ROOT = "/models"
DEFAULT_PORT = 8000

PAGE = 4096
"""Bytes. The data part of every baked safetensors file starts on a multiple of this."""

SHARD = re.compile(r".*-\d{5}-of-\d{5}\.safetensors")
"""A file of weights that is one of several: `model-00001-of-00003.safetensors`."""

MODEL_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
"""A model's name is also a folder, a build target and a stage: lower case, no separators at either end."""


def default_root() -> Path:
    """The folder of baked models: `PREBAKE_ROOT`, else `/models`."""
    return Path(os.environ.get(ENV_ROOT) or DEFAULT_ROOT)


def is_inside(path: str) -> bool:
    """Whether a relative POSIX path stays inside its folder: no root, drive, backslash, empty or dot parts."""
    return not path.startswith("/") and not any(
        part in ("", ".", "..") or "\\" in part or ":" in part or "\0" in part for part in path.split("/")
    )
