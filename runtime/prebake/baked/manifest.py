"""`manifest.json`, the typed description of a baked model. Standard library only.

The format is described in `docs/manifest.md` and `docs/manifest.schema.json`.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prebake.baked import layout
from prebake.baked.warmup import Warmup, read_warmup, spell_warmup
from prebake.documents.messages import quote
from prebake.documents.table import Table, canonical_json, read_json
from prebake.errors import DocumentError, IntegrityError

FORMAT = 1
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class File:
    """One file of a baked model or of a checkpoint."""

    path: str
    """POSIX, relative to the model's folder."""
    size: int
    """Bytes."""
    sha256: str
    """64 hexadecimal digits."""

    @classmethod
    def from_table(cls, table: Table) -> File:
        file = cls(path=table.take("path", str), size=table.take("size", int), sha256=table.take("sha256", str))
        if not layout.is_inside(file.path):
            raise table.fail("path", f"{quote(file.path)} leaves the model's folder")
        if file.size < 0:
            raise table.fail("size", f"{file.size} is negative")
        if not _SHA256.fullmatch(file.sha256):
            raise table.fail("sha256", f"{quote(file.sha256)} is not 64 hexadecimal digits")
        table.finish()
        return file

    def to_dict(self) -> dict[str, Any]:
        return {"path": self.path, "size": self.size, "sha256": self.sha256}


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Where the checkpoint came from."""

    uri: str
    """As in `models.toml`."""
    revision: str
    """The exact revision with its kind: `commit:…`, `sha256:…`, `generator:…`."""
    licence: str | None = None
    """As upstream declares it: an SPDX identifier if there is one."""

    @classmethod
    def from_table(cls, table: Table) -> Source:
        source = cls(
            uri=table.take("uri", str),
            revision=table.take("revision", str),
            licence=table.maybe("licence", str),
        )
        table.finish()
        return source

    def to_dict(self) -> dict[str, Any]:
        return {"uri": self.uri, "revision": self.revision, "licence": self.licence}


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """The files of tensors, and what these files alone can't express."""

    files: tuple[str, ...]
    """safetensors files that together hold the module's state dict, each tensor once."""
    buffers: str | None
    """safetensors file with the module's tensors that are not in its state dict."""
    tensors: int
    """Number of tensors in all these files."""
    bytes: int
    """Size of all tensors, without headers."""
    dtypes: Mapping[str, int]
    """safetensors dtype name → number of tensors."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Tied name that is not stored → stored name whose tensor it shares."""
    prefixes: Mapping[str, str] = field(default_factory=dict)
    """File → what its tensors' names lack in front; for models of several components, each with a file of its own."""

    @classmethod
    def from_table(cls, table: Table) -> Weights:
        weights = cls(
            files=table.strings("files"),
            buffers=table.maybe("buffers", str),
            tensors=table.take("tensors", int),
            bytes=table.take("bytes", int),
            dtypes=table.mapping("dtypes", int),
            aliases=table.mapping("aliases", str, {}),
            prefixes=table.mapping("prefixes", str, {}),
        )
        for file in weights.prefixes:
            if file not in weights.files:
                raise table.fail("prefixes", f"{quote(file)} is not among weights.files")
        table.finish()
        return weights

    def to_dict(self) -> dict[str, Any]:
        return {
            "files": list(self.files),
            "buffers": self.buffers,
            "tensors": self.tensors,
            "bytes": self.bytes,
            "dtypes": dict(self.dtypes),
            "aliases": dict(self.aliases),
            **({"prefixes": dict(self.prefixes)} if self.prefixes else {}),
        }

    @property
    def all_files(self) -> tuple[str, ...]:
        """The state dict's files, then the buffers' file if there is one."""
        return (*self.files, self.buffers) if self.buffers else self.files


@dataclass(frozen=True, kw_only=True, slots=True)
class Loading:
    """Options for loading the model, as declared in `models.toml`."""

    retries: int = 0
    """How often a failed load is retried, with growing pauses."""
    timeout: float | None = None
    """Seconds after which a waiting caller gets an error; None waits indefinitely."""
    required: bool = True
    """Whether readiness requires this model to be loaded."""
    warmup: Warmup | None = None
    """What the model is warmed up with: `module:function` of the application, or inputs as data."""

    @classmethod
    def from_table(cls, table: Table) -> Loading:
        loading = cls(
            retries=table.take("retries", int, 0),
            timeout=table.maybe("timeout", float),
            required=table.take("required", bool, True),
            warmup=read_warmup(table),
        )
        if loading.retries < 0:
            raise table.fail("retries", f"{loading.retries} is negative")
        if loading.timeout is not None and not 0 < loading.timeout < math.inf:
            raise table.fail("timeout", f"{loading.timeout:g} is not a valid timeout (expected seconds above 0)")
        table.finish()
        return loading

    def to_dict(self) -> dict[str, Any]:
        warmup = {} if self.warmup is None else {"warmup": spell_warmup(self.warmup)}
        return {"retries": self.retries, "timeout": self.timeout, "required": self.required, **warmup}


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """One baked model. `Manifest.read` reads and checks a manifest; `text` is its canonical form."""

    name: str
    family: str
    class_: str
    """What the family builds: a class of transformers, `Reader`, or `module:factory`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the family: `dtype`, `languages`, `quantize`, `arguments`."""
    loading: Loading = field(default_factory=Loading)
    source: Source
    files: tuple[File, ...]
    weights: Weights
    structure: str | None = None
    """File with the constructed module without its tensors, if there is one; see `prebake.modules.structure`."""
    converter: Mapping[str, str]
    """Package → version that wrote the folder."""
    requires: Mapping[str, str] = field(default_factory=dict)
    """Package → version with which the build proved the fast tiers."""

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The checked manifest of a model folder.

        Raises DocumentError, which names the path in the document, or NewerFormatError.
        """
        if not folder.is_dir():
            raise DocumentError(f"{folder}: there is no such folder (expected a baked model)")
        return cls.from_table(read_json(folder / layout.MANIFEST, FORMAT, "manifest"))

    @classmethod
    def from_table(cls, table: Table) -> Manifest:
        manifest = cls(
            name=table.take("name", str),
            family=table.take("family", str),
            class_=table.take("class", str),
            options=table.take("options", dict, {}),
            loading=Loading.from_table(table.table("loading", {})),
            source=Source.from_table(table.table("source")),
            files=table.items("files", File.from_table),
            weights=Weights.from_table(table.table("weights")),
            structure=table.maybe("structure", str),
            converter=table.mapping("converter", str),
            requires=table.mapping("requires", str, {}),
        )
        digest = table.take("set_digest", str)
        table.finish()
        manifest._check(table)
        if digest != manifest.set_digest:
            raise table.fail("set_digest", f"{digest} does not match the files listed ({manifest.set_digest})")
        return manifest

    def _check(self, table: Table) -> None:
        paths = [file.path for file in self.files]
        if paths != sorted(set(paths)):
            raise table.fail("files", "expected each path once, sorted")
        for key, names in (("weights.files", self.weights.all_files), ("structure", (self.structure,))):
            for name in names:
                if name is not None and name not in paths:
                    raise table.fail(key, f"{quote(name)} is not among the files")
        if not layout.MODEL_NAME.fullmatch(self.name):
            raise table.fail("name", f"{quote(self.name)} is not a valid model name")

    @property
    def set_digest(self) -> str:
        """One digest for the whole folder: sha256 over the sorted `sha256  path` lines."""
        return set_digest(self.files)

    @property
    def text(self) -> str:
        """The manifest as canonical JSON."""
        return canonical_json(
            {
                "format": FORMAT,
                "name": self.name,
                "family": self.family,
                "class": self.class_,
                "options": dict(self.options),
                "loading": self.loading.to_dict(),
                "source": self.source.to_dict(),
                "files": [file.to_dict() for file in self.files],
                "set_digest": self.set_digest,
                "weights": self.weights.to_dict(),
                "structure": self.structure,
                "converter": dict(self.converter),
                "requires": dict(self.requires),
            }
        )

    def check_sizes(self, folder: Path) -> None:
        """Compare every file's size with the manifest; costs one `stat` per file.

        Raises IntegrityError that lists each file that is missing, unreadable or of a different size.
        """
        findings = [finding for file in self.files if (finding := _check_size(folder, file))]
        if findings:
            raise IntegrityError(
                f"{folder}: differs from its manifest:\n  " + "\n  ".join(findings)
                + "\nBake or pull this model again."
            )  # fmt: skip


def set_digest(files: Iterable[File]) -> str:
    """sha256 over the lines `sha256  path`, sorted by path, as `sha256sum` prints them."""
    lines = (f"{file.sha256}  {file.path}\n" for file in sorted(files, key=lambda file: file.path))
    return "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()


def _check_size(folder: Path, file: File) -> str | None:
    path = folder / file.path
    try:
        found = path.stat()
    except FileNotFoundError:
        return f"{file.path}: missing"
    except OSError as error:
        return f"{file.path}: {error.strerror}"
    if not stat.S_ISREG(found.st_mode):
        return f"{file.path}: expected a file, found something else"
    if found.st_size != file.size:
        return f"{file.path}: expected {file.size:,} bytes, found {found.st_size:,}"
    if not os.access(path, os.R_OK):
        return f"{file.path}: not readable for user {os.geteuid()} (files of a baked model are 0644)"
    return None
