"""Where checkpoints come from: the `Source` interface, and the function that opens a source.

A source is given by a URI in `models.toml`; its scheme selects the implementation, through the entry-point group
`prebake.sources` (`docs/sources.md`). It works in two steps, so the result of the first can be kept in `models.lock`:

1. `resolve()` asks upstream for the URI's current exact revision, and the files with their hashes;
2. `fetch(resolved, folder)` fetches exactly those files.

Some upstreams publish no hashes, so resolving requires fetching. Such a source also has `resolve_into(folder)`
(`ResolvesByFetching`), and the cache keeps the fetched files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from prebake.baked.manifest import File
from prebake.documents.messages import nearest, one_line, quote
from prebake.errors import ConfigError
from prebake_build.sources.selection import Wanted

GROUP = "prebake.sources"
"""Group of entry points: scheme → `module:factory`."""

_STORE = "prebake_build.sources.store:StoreSource.parse"

IN_THE_BOX = {
    "hf": "prebake_build.sources.hugging_face:HuggingFaceSource.parse",
    "easyocr": "prebake_build.sources.easyocr:EasyOcrSource.parse",
    "url": "prebake_build.sources.url:UrlSource.parse",
    "path": "prebake_build.sources.path:PathSource.parse",
    "package": "prebake_build.sources.package:PackageSource.parse",
    "dummy": "prebake_build.sources.dummy:DummySource.parse",
    # stores, as fsspec calls them
    **dict.fromkeys(("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hdfs", "webhdfs", "lakefs", "oci"), _STORE),
    **dict.fromkeys(("oss", "tos", "sftp", "smb"), _STORE),
}
"""Scheme → its factory, as an entry point would name it. An entry point can't replace one of these."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Resolved:
    """The exact meaning of a source's URI: enough to fetch the same bytes again, and to detect changes."""

    revision: str
    """The exact revision with its kind: `commit:…`, `sha256:…` (of the set of files), `generator:…`."""
    files: tuple[File, ...]
    """Sorted by path."""
    licence: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Upstream:
    """What upstream's tables publish about one file, known without fetching it."""

    path: str
    """Path in the checkpoint."""
    url: str
    member: str
    """The file inside the archive `path` to which `md5` belongs."""
    md5: str
    """32 hexadecimal digits."""


class Source(Protocol):
    """One checkpoint upstream."""

    @property
    def uri(self) -> str:
        """As in `models.toml`."""

    def resolve(self) -> Resolved:
        """Ask upstream. Raises SourceError if it is unreachable or does not know the URI."""

    def fetch(self, resolved: Resolved, folder: Path) -> None:
        """Write the files of `resolved` into `folder`, which exists and is empty.

        The caller verifies sizes and hashes afterwards. Raises SourceError.
        """


@runtime_checkable
class ResolvesByFetching(Protocol):
    """A source that must fetch its files to get their hashes."""

    def resolve_into(self, folder: Path) -> Resolved:
        """Like `Source.resolve`, but also writes all files of the result into `folder`, which exists and is empty."""


@runtime_checkable
class KnowsUpstream(Protocol):
    """A source that knows something about its files without asking upstream."""

    def upstream(self) -> tuple[Upstream, ...]:
        """What is known, sorted by path."""


@runtime_checkable
class ChoosesFiles(Protocol):
    """A source that has more files than a family needs."""

    def wanting(self, wanted: Wanted) -> Source:
        """The same source, which resolves to the files that are wanted."""


@runtime_checkable
class TellsOptions(Protocol):
    """A source whose URI tells the family something about its files."""

    @property
    def options(self) -> Mapping[str, Any]:
        """Options for `BuildFamily.load`: `languages` of an `easyocr:` source."""


class Factory(Protocol):
    """What an entry point of the group `prebake.sources` leads to."""

    def __call__(self, uri: str, rest: str, where: str, base: Path) -> Source:
        """The source for `uri`; `rest` is what follows the scheme and its colon.

        Checks the form of the URI alone: `models.toml` is read on machines that fetch nothing. Relative paths are
        relative to `base`, the folder of `models.toml`. Raises ConfigError that begins with `where`.
        """


def open_source(uri: str, *, base: Path, where: str) -> Source:
    """The source for `uri`.

    Paths are relative to `base`, the folder of `models.toml`; `where` begins messages. Raises ConfigError for an
    unknown scheme, a malformed URI, or a source of another distribution that can't be imported.
    """
    scheme, colon, rest = uri.partition(":")
    entry = _entry(scheme, where) if colon else None
    if entry is None:
        known = schemes()
        raise ConfigError(
            f"{where}: {quote(uri)} has no known scheme (expected one of {', '.join(name + ':' for name in known)})"
            f"{_hint(scheme, uri, known)}"
        )
    return _factory(entry, where)(uri, rest, where, base)


def schemes() -> tuple[str, ...]:
    """The schemes in the box, then those of other distributions, sorted."""
    return (*IN_THE_BOX, *sorted({entry.name for entry in entry_points(group=GROUP)} - IN_THE_BOX.keys()))


def _entry(scheme: str, where: str) -> EntryPoint | None:
    if scheme in IN_THE_BOX:
        return EntryPoint(scheme, IN_THE_BOX[scheme], GROUP)
    found = list(entry_points(group=GROUP, name=scheme))
    if len(found) > 1:
        providers = " and by ".join(sorted(map(_provider, found)))
        raise ConfigError(f"{where}: the scheme {quote(scheme)} is provided by {providers}: uninstall all but one")
    return found[0] if found else None


def _factory(entry: EntryPoint, where: str) -> Factory:
    try:
        factory: Factory = entry.load()
    except Exception as error:  # code of another distribution
        raise ConfigError(
            f"{where}: the source {quote(entry.name + ':')} of {_provider(entry)} cannot be imported: {one_line(error)}"
        ) from error
    return factory


def _provider(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value


def _hint(scheme: str, uri: str, known: tuple[str, ...]) -> str:
    if scheme in ("http", "https"):
        return f": did you mean {quote(f'url:{uri}')}?"
    return nearest(scheme, known) or f" (others come with a package that has an entry point of the group {GROUP})"
