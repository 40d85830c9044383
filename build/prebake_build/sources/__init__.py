"""Where checkpoints come from: the `Source` interface and its one dispatch.

A source is named by a URI in `models.toml`; its scheme picks the implementation. It works in two
steps, so that what was agreed on can be kept in `models.lock`:

1. `resolve()` asks upstream what the URI means today: an exact revision, and the files with their hashes;
2. `fetch(resolved, folder)` brings exactly those files.

Some upstreams publish no hashes, so that resolving means fetching. Such a source also has
`resolve_into(folder)` (`ResolvesByFetching`), and the cache keeps what it brought.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from prebake.baked.manifest import File
from prebake.documents.messages import nearest, quote
from prebake.errors import ConfigError

SCHEMES = ("hf", "easyocr", "url", "path", "dummy")


@dataclass(frozen=True, kw_only=True, slots=True)
class Resolved:
    """What a source's URI means: enough to fetch the same bytes again, and to notice when they differ."""

    revision: str
    """Exact, with its kind: `commit:…`, `sha256:…` (of the set of files), `generator:…`."""
    files: tuple[File, ...]
    """Sorted by path."""
    licence: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Upstream:
    """What is known of one file before it was ever fetched: never a guess, only what a table publishes."""

    path: str
    """In the checkpoint."""
    url: str
    member: str
    """The file inside the archive `path` that `md5` is of."""
    md5: str
    """32 hexadecimal digits."""


class Source(Protocol):
    """One checkpoint upstream."""

    @property
    def uri(self) -> str:
        """As `models.toml` writes it."""

    def resolve(self) -> Resolved:
        """Ask upstream. Raises SourceError where it cannot be reached or does not know the URI."""

    def fetch(self, resolved: Resolved, folder: Path) -> None:
        """Write the files of `resolved` into `folder`, which exists and is empty.

        The caller verifies sizes and hashes afterwards. Raises SourceError.
        """


@runtime_checkable
class ResolvesByFetching(Protocol):
    """A source that must fetch to know its hashes."""

    def resolve_into(self, folder: Path) -> Resolved:
        """Like `Source.resolve`, and all files of the result are in `folder`, which exists and is empty."""


@runtime_checkable
class KnowsUpstream(Protocol):
    """A source that can say something without asking upstream."""

    def upstream(self) -> tuple[Upstream, ...]:
        """What is known already, sorted by path."""


def open_source(uri: str, *, base: Path, where: str) -> Source:
    """The source that `uri` names.

    `base` is the folder that relative paths start from (that of `models.toml`); `where` begins messages.
    Raises ConfigError for a scheme that is not known or a URI that its scheme cannot read.
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
