"""Whether a baked folder is what a bake would write now, and if not, why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from prebake.baked import layout
from prebake.baked.header import read_header
from prebake.baked.manifest import Manifest
from prebake.errors import DocumentError, IntegrityError, TensorFileError
from prebake_build.baking.environment import DIGEST
from prebake_build.cache.converted import Conversion


def why_stale(place: Path, recipe: str, limit: int) -> str | None:
    """Why the folder must be baked again: empty if there is none, None if it is up to date."""
    if not place.is_dir():
        return ""
    try:
        manifest = Manifest.read(place)
        manifest.check_sizes(place)
        if versions := _other_versions(manifest):
            return f"{place} was baked with {versions}"
        if manifest.converter.get("recipe") != recipe:
            return f"{place} was baked from another checkpoint, or with other options"
        return f"{place} has more than {limit:,} bytes in one file" if _is_unsplit(manifest, place, limit) else None
    except (DocumentError, IntegrityError, TensorFileError) as error:
        return str(error)


def why_other_code(place: Path, recipe: str, code: Mapping[str, str], kept: Iterable[Conversion]) -> str | None:
    """Whether the folder is known to be of another state of the project's own code, and of which part.

    `code` is that of now (`environment.code_of`); of installed packages, the manifest has the versions. It has no
    digests, since a layer must not change with code that gives the same bytes. The entries of the build cache have
    them, if the folder's is among them.
    """
    own = {name: now for name, now in code.items() if now.startswith(DIGEST)}
    digest = Manifest.read(place).set_digest
    same = [entry.versions for entry in kept if (entry.recipe, entry.set_digest) == (recipe, digest)]
    changed = [sorted(name for name, now in own.items() if versions.get(name) != now) for versions in same]
    return f"{place} was baked with other code of {', '.join(changed[0])}" if changed and all(changed) else None


def _other_versions(manifest: Manifest) -> str:
    """The packages that this bake would record with another version than the manifest has."""
    recorded = {**manifest.requires, "prebake-build": manifest.converter.get("prebake-build", "none")}
    pairs = {package: (known, _installed(package)) for package, known in sorted(recorded.items())}
    return ", ".join(f"{package} {known} (now {now})" for package, (known, now) in pairs.items() if known != now)


def _installed(package: str) -> str:
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        return "none"


def _is_unsplit(manifest: Manifest, place: Path, limit: int) -> bool:
    """Whether it is of a version that did not split large models."""
    for file in manifest.files:
        if file.path == layout.WEIGHTS and file.size > limit:
            header = read_header(place / file.path)
            return header.size > limit and len(header.entries) > 1
    return False
