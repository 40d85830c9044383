"""`easyocr:ko+en`: the zips that `easyocr.Reader(['ko', 'en'])` would download, as upstream publishes them.

EasyOCR's own tables list the zips, so a new EasyOCR version brings its own models. The tables have the address of each
zip and the md5 of its only member, but not the zip's hash: resolving requires fetching.
"""

from __future__ import annotations

import importlib.util
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prebake.baked.manifest import set_digest
from prebake.documents.messages import quote
from prebake.errors import ConfigError
from prebake_build.files import digest
from prebake_build.sources import Resolved, Upstream
from prebake_build.sources.archives import check_member
from prebake_build.sources.download import check_url, download
from prebake_build.sources.pieces import in_parallel
from prebake_build.upstream.easyocr import Archive, archive_members, recognizer_of

ENV_MIRROR = "EASYOCR_MIRROR"
"""A base URL that replaces scheme, host and folders of every zip: MIRROR/korean_g2.zip."""

_LANGUAGES = re.compile(r"[a-z_]+(?:\+[a-z_]+)*")


@dataclass(frozen=True, kw_only=True, slots=True)
class EasyOcrSource:
    """The CRAFT detector and the recogniser of some languages."""

    uri: str
    languages: tuple[str, ...]

    @classmethod
    def parse(cls, uri: str, rest: str, where: str, base: Path = Path()) -> EasyOcrSource:
        """Raises ConfigError that begins with `where`.

        If EasyOCR is installed, checks that it knows the languages; otherwise `resolve` does, because `models.toml`
        must be readable without EasyOCR.
        """
        languages = tuple(rest.split("+"))
        if not _LANGUAGES.fullmatch(rest) or len(set(languages)) != len(languages):
            raise ConfigError(f'{where}: {quote(uri)} is not of the form "easyocr:ko+en", each language once')
        if importlib.util.find_spec("easyocr") is not None:
            recognizer_of(languages, where)
        return cls(uri=uri, languages=languages)

    @property
    def options(self) -> dict[str, Any]:
        """The languages, for the family."""
        return {"languages": list(self.languages)}

    def upstream(self) -> tuple[Upstream, ...]:
        """What EasyOCR's tables publish about the zips."""
        archives = archive_members(self.languages, self.uri).values()
        return tuple(Upstream(path=a.name, url=a.url, member=a.member, md5=a.md5) for a in archives)

    def resolve(self) -> Resolved:
        """Fetch, hash and discard. Raises SourceError, IntegrityError, ConfigError."""
        with tempfile.TemporaryDirectory(prefix="prebake-") as folder:
            return self.resolve_into(Path(folder))

    def resolve_into(self, folder: Path) -> Resolved:
        """Fetch into `folder`, and compare the members with EasyOCR's md5 sums. Raises like `resolve`."""
        archives = archive_members(self.languages, self.uri).values()
        in_parallel(lambda archive: self._bring(archive, folder), archives)
        for archive in archives:
            check_member(folder / archive.name, archive.member, archive.md5)
        files = digest.files_of(folder)
        return Resolved(revision=set_digest(files), files=files)

    def fetch(self, resolved: Resolved, folder: Path) -> None:
        """Raises SourceError, and ConfigError if the installed EasyOCR uses different zips than the locked ones."""
        archives = archive_members(self.languages, self.uri)
        locked = [file.path for file in resolved.files]
        if sorted(archives) != locked:
            raise ConfigError(
                f"{self.uri}: {', '.join(locked)} were locked, but the installed EasyOCR uses "
                f"{', '.join(archives)}: run `prebake lock`, or install the EasyOCR version used for the lock"
            )
        in_parallel(lambda archive: self._bring(archive, folder), archives.values())

    def _bring(self, archive: Archive, folder: Path) -> None:
        download(_mirrored(archive), folder / archive.name, uri=self.uri)


def _mirrored(archive: Archive) -> str:
    mirror = os.environ.get(ENV_MIRROR)
    return f"{check_url(mirror, ENV_MIRROR).rstrip('/')}/{archive.name}" if mirror else archive.url
