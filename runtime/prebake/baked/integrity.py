"""Compares the hashes of a baked model's files with its manifest: `verify="full"` does this before a load.

Every start checks sizes and headers, at the cost of one `stat` per file. Hashing reads all weights; it releases the
GIL, so it runs in parallel with imports and other models' loads. Where the manifest is signed, the files beside the
weights are always hashed: they are small, and decide what is built.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from prebake.baked import layout
from prebake.baked.manifest import File, Manifest
from prebake.documents.messages import nearest, quote, reason
from prebake.errors import ConfigError, IntegrityError

Verify = Literal["size", "full"]
CHUNK = 1 << 22


def check_verify(value: str) -> Verify:
    """The value. Raises ConfigError unless it is `size` or `full`."""
    for known in get_args(Verify):
        if value == known:
            found: Verify = known
            return found
    raise ConfigError(f"verify: {quote(value)} is not one of size, full{nearest(value, get_args(Verify))}")


def check_hashes(manifest: Manifest, folder: Path) -> None:
    """Compare every file's sha256 with the manifest. Raises IntegrityError that lists each file that differs."""
    _raise(folder, [finding for file in manifest.files if (finding := _check(folder, file))])


def check_beside_weights(manifest: Manifest, folder: Path) -> None:
    """Compare the sha256 of the files that hold no weights with the manifest, and the folder's files with its list.

    Raises IntegrityError that lists each file that differs and each that the manifest does not list.
    """
    weights = frozenset(manifest.weights.all_files)
    findings = [f for file in manifest.files if file.path not in weights and (f := _check(folder, file))]
    listed = {file.path for file in manifest.files} | {layout.MANIFEST}
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if Path(parent, name).is_symlink()]
        found = {Path(parent, name).relative_to(folder).as_posix() for name in files + links}
        findings += [f"{path}: is not in the manifest" for path in sorted(found - listed)]
    _raise(folder, findings)


def _raise(folder: Path, findings: Sequence[str]) -> None:
    if findings:
        raise IntegrityError(
            f"{folder}: differs from its manifest:\n  " + "\n  ".join(findings) + "\nBake or pull this model again."
        )


def _check(folder: Path, file: File) -> str | None:
    digest = hashlib.sha256()
    try:
        with (folder / file.path).open("rb", buffering=0) as opened:
            while chunk := opened.read(CHUNK):
                digest.update(chunk)
    except OSError as error:
        return f"{file.path}: {reason(error)}"
    found = digest.hexdigest()
    return None if found == file.sha256 else f"{file.path}: expected sha256 {file.sha256}, found {found}"
