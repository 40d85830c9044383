"""Compares the hashes of a baked model's files with its manifest: `verify="full"` does this before a load.

Every start checks sizes and headers, at the cost of one `stat` per file. Hashing reads all weights; it releases the
GIL, so it runs in parallel with imports and other models' loads.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal, get_args

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
    findings = [finding for file in manifest.files if (finding := _check(folder, file))]
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
