"""Where checkpoints come from: the `Source` interface, and the function that opens a source.

A source is given by a URI in `models.toml`; its scheme selects the implementation. It works in two steps, so the result
of the first can be kept in `models.lock`:

1. `resolve()` asks upstream for the URI's current exact revision, and the files with their hashes;
2. `fetch(resolved, folder)` fetches exactly those files.

Some upstreams publish no hashes, so resolving requires fetching. Such a source also has `resolve_into(folder)`
(`ResolvesByFetching`), and the cache keeps the fetched files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from prebake.baked.manifest import File
from prebake.documents.messages import nearest, quote
from prebake.errors import ConfigError
from prebake_build.sources.selection import Wanted

SCHEMES = ("hf", "easyocr", "url", "path", "dummy")


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


def open_source(uri: str, *, base: Path, where: str) -> Source:
    """The source for `uri`.

    Paths are relative to `base`, the folder of `models.toml`; `where` begins messages. Raises ConfigError for an
    unknown scheme or a malformed URI.
    """
    scheme, colon, rest = uri.partition(":")
    if not colon or scheme not in SCHEMES:
        raise ConfigError(
            f"{where}: {quote(uri)} has no known scheme (expected one of "
            f"{', '.join(name + ':' for name in SCHEMES)}){nearest(scheme, SCHEMES)}"
        )
    if scheme == "hf":
        from prebake_build.sources.hugging_face import HuggingFaceSource

        return HuggingFaceSource.parse(uri, rest, where)
    if scheme == "easyocr":
        from prebake_build.sources.easyocr import EasyOcrSource

        return EasyOcrSource.parse(uri, rest, where)
    if scheme == "url":
        from prebake_build.sources.url import UrlSource

        return UrlSource.parse(uri, rest, where)
    if scheme == "path":
        from prebake_build.sources.path import PathSource

        return PathSource.parse(uri, rest, where, base)
    from prebake_build.sources.dummy import DummySource

    return DummySource.parse(uri, rest, where)
