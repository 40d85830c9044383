"""Packages whose versions differ from those that a model was baked with.

The build proved the fast tiers with the versions in `requires`. With others, a structure is not used: every start runs
the model's constructor, which is slower, or falls back.
"""

from __future__ import annotations

import logging
import threading

from prebake.baked.model import BakedModel

logger = logging.getLogger(__name__)

_lock = threading.Lock()
_told: set[str] = set()


def drift(baked: BakedModel) -> list[str]:
    """What differs, one line for each package, with what to do; empty if nothing does."""
    from prebake.modules.structure import installed

    lines = []
    for package, wanted in sorted(baked.manifest.requires.items()):
        found = installed(package)
        if found != wanted:
            lines.append(
                f"{baked.name}: baked with {package} {wanted}, but {found or 'none'} is installed: starts are slower: "
                f"bake it again with the installed version, or install {package}=={wanted}"
            )
    return lines


def warn(baked: BakedModel) -> None:
    """Log the drift, each line once in a process."""
    for line in drift(baked):
        with _lock:
            known = line in _told
            _told.add(line)
        if not known:
            logger.warning("%s", line)
