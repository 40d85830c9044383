"""The packages of an environment, by the RECORD files that their installer wrote."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from prebake.documents.messages import reason
from prebake.errors import ConfigError, DocumentError
from prebake_build.files.atomic import write_text

_CHUNK = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Distribution:
    """One installed package."""

    name: str
    """Normalized."""
    record: Path
    rows: tuple[tuple[str, str, str], ...]
    """Path relative to site-packages, hash and size, as in RECORD."""


def find_site_packages(prefix: Path) -> Path:
    """Where the packages of an environment are: below a prefix, or the folder itself (`pip install --target`).

    Raises ConfigError if no package is there.
    """
    for folder in (*sorted(prefix.glob("lib/python3.*/site-packages")), prefix):
        if any(folder.glob("*.dist-info/RECORD")):
            return folder
    raise ConfigError(
        f"{prefix}: no packages are installed there (expected lib/python3.…/site-packages with *.dist-info/RECORD): "
        "name the folder of a virtual environment"
    )


def read_distributions(site: Path) -> list[Distribution]:
    """All packages, sorted by name. Raises DocumentError for a RECORD that cannot be read."""
    return [_read(path) for path in sorted(site.glob("*.dist-info/RECORD"))]


def _read(record: Path) -> Distribution:
    try:
        with record.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DocumentError(f"{record}: cannot read it: {reason(error)}") from error
    for number, row in enumerate(rows, 1):
        if len(row) != 3:
            raise DocumentError(f"{record}: row {number}: expected path, hash and size, found {len(row)} fields")
    name = record.parent.name.removesuffix(".dist-info").rpartition("-")[0]
    return Distribution(
        name=re.sub(r"[-_.]+", "-", name).lower(),
        record=record,
        rows=tuple((row[0], row[1], row[2]) for row in rows),
    )


def files_of(distribution: Distribution, site: Path) -> Iterator[str]:
    """The package's files inside site-packages that are there; not those that a link leads out of it.

    Not byte code, which some installers list and some do not: it goes with its module.
    """
    root = Path(os.path.realpath(site))
    known: dict[str, bool] = {}
    for path, _, _ in distribution.rows:
        pure = PurePosixPath(path)
        if pure.is_absolute() or ".." in pure.parts or pure.suffix == ".pyc":
            continue
        folder = str(pure.parent)
        if folder not in known:
            known[folder] = Path(os.path.realpath(site / folder)) == root / folder
        if known[folder] and (site / path).is_file():
            yield path


def byte_code_of(path: str, site: Path) -> list[str]:
    """The compiled files of a module; empty for other files."""
    pure = PurePosixPath(path)
    if pure.suffix != ".py":
        return []
    folder = site / pure.parent / "__pycache__"
    return [f"{pure.parent / '__pycache__' / found.name}" for found in folder.glob(f"{pure.stem}.*.pyc")]


def correct_record(distribution: Distribution, site: Path) -> None:
    """Write RECORD without the files that are gone, and with the hashes of those whose size is another.

    Compares with the disk rather than with a list of changes: so a run mends what an interrupted one left.
    """
    rows = [row for row in (_corrected(row, site) for row in distribution.rows) if row is not None]
    if tuple(rows) != distribution.rows:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        mode = distribution.record.stat().st_mode
        write_text(distribution.record, text.getvalue())
        distribution.record.chmod(mode & 0o7777)


def _corrected(row: tuple[str, str, str], site: Path) -> tuple[str, str, str] | None:
    path, _, size = row
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts:
        return row
    try:
        now = (site / path).stat().st_size
    except FileNotFoundError:
        return None
    return row if size in ("", str(now)) else (path, *_hash(site / path))


def _hash(path: Path) -> tuple[str, str]:
    """As PEP 376 and the wheel format write it."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return f"sha256={base64.urlsafe_b64encode(digest.digest()).rstrip(b'=').decode()}", str(path.stat().st_size)
