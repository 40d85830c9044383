"""`bake --locked`: what is baked must be what `models.lock` says, down to the layers."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from prebake.errors import ConfigError, IntegrityError, PrebakeError
from prebake_build.declared.lock import Lock
from prebake_build.declared.result import RECIPE, Baked, changed_declaration
from prebake_build.declared.spec import ModelSpec


def require_locked(lock: Lock, models: Sequence[ModelSpec]) -> dict[str, Baked]:
    """Model → what its bake must give.

    Raises ConfigError that lists every model that is not locked, not recorded, declared otherwise by now, or was baked
    with other versions than those installed; each line ends with the command that mends it.
    """
    lines: list[str] = []
    found: dict[str, Baked] = {}
    for model in models:
        try:
            lock.require(model.name, model.source)
        except ConfigError as error:
            lines.append(str(error))
            continue
        baked = lock.models[model.name].baked
        if baked is None:
            lines.append(
                f"models.lock: models.{model.name}: no result is recorded: run `prebake bake --record {model.name}`"
            )
            continue
        found[model.name] = baked
        lines += [f"models.lock: models.{model.name}.baked.{line}: run `prebake bake --record {model.name}`"
                  for line in changed_declaration(baked, model)]  # fmt: skip
        lines += [f"models.lock: models.{model.name}.baked.{line}" for line in _other_versions(baked)]
    if lines:
        raise ConfigError("\n".join(lines))
    return found


def _other_versions(baked: Baked) -> list[str]:
    lines = []
    for table, packages in (("converter", baked.converter), ("requires", baked.requires)):
        for package, locked in sorted(packages.items()):
            installed = _installed(package)
            if package != RECIPE and installed != locked:
                lines.append(
                    f"{table}.{package}: locked {locked}, installed {installed or 'none'}: "
                    f"run `pip install '{package}=={locked}'`, or `prebake bake --record` to take this version on"
                )
    return lines


def _installed(package: str) -> str | None:
    try:
        # builds of one version for different hardware prove the same: 2.13.0+cpu
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        return None


def refuse(name: str, lines: Sequence[str]) -> PrebakeError:
    """The error about a model whose bake gave something else than the lock says."""
    return IntegrityError(
        f"models.{name}: the bake gave something else than models.lock says:\n  " + "\n  ".join(lines)
        + f"\nThe previous folder is unchanged. `prebake bake --record {name}` takes this result on."
    )  # fmt: skip
