"""Loads a checkpoint with its own framework: the reference for the proof of a baked model.

Runs only in the worker process. It runs no code from a checkpoint: see `prebake_build.families.state_dicts`.
"""

from __future__ import annotations

from pathlib import Path

from prebake.errors import ConfigError
from prebake.families import compat
from prebake_build.families.family import Ordinary, Recipe, build_family, installs


def load_checkpoint(recipe: Recipe, checkpoint: Path) -> Ordinary:
    """Load the checkpoint through its own framework.

    Raises SourceError if it is damaged, incomplete or would run code, and ConfigError if the recipe does not fit it, or
    if its family or a package of it is not installed.
    """
    where = f"models.{recipe.name}"
    family = build_family(recipe.family, where)
    compat.torchvision_operators()
    try:
        return family.load(recipe, checkpoint)
    except ImportError as error:
        from prebake_build.families.state_dicts import first_line

        raise ConfigError(
            f"{where}: cannot import a package it needs: {first_line(error)} "
            f"(pip install {installs(recipe.family, where)})"
        ) from error
