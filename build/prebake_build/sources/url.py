"""`url:https://…[#sha256=…]`: one file, or one archive that is unpacked into the checkpoint.

The revision is the sha256 of the downloaded file, as `sha256sum` prints it; `#sha256=` pins it.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from prebake.baked import layout
from prebake.documents.messages import quote
from prebake.errors import ConfigError, IntegrityError
from prebake_build.files import digest
from prebake_build.sources import Resolved
from prebake_build.sources.archives import SUFFIXES, is_archive, unpack
from prebake_build.sources.download import check_url, download

_PIN = re.compile(r"sha256=([0-9a-fA-F]{64})")


@dataclass(frozen=True, kw_only=True, slots=True)
class UrlSource:
    """One file or archive behind one address."""

    uri: str
    url: str
    name: str
    """The file's name: the last part of the address."""
    sha256: str | None
    """The sha256 that the URI pins, or None."""

    @classmethod
    def parse(cls, uri: str, rest: str, where: str, base: Path = Path()) -> UrlSource:
        """Raises ConfigError that begins with `where`."""
        url, hash_, fragment = rest.partition("#")
        check_url(url, where)
        pin = _PIN.fullmatch(fragment)
        if hash_ and not pin:
            raise ConfigError(f'{where}: {quote("#" + fragment)} is not "#sha256=" and 64 hexadecimal digits')
        name = unquote(urlsplit(url).path.rpartition("/")[2])
        if not layout.is_inside(name) or "/" in name or name.startswith("."):
            raise ConfigError(
                f"{where}: {quote(url)} does not end in a file name (a file, or an archive: {', '.join(SUFFIXES)})"
            )
        return cls(uri=uri, url=url, name=name, sha256=pin[1].lower() if pin else None)

    def resolve(self) -> Resolved:
        """Fetch, hash and discard. Raises SourceError, and IntegrityError if the hash differs from the pinned one."""
        with tempfile.TemporaryDirectory(prefix="prebake-") as folder:
            return self.resolve_into(Path(folder))

    def resolve_into(self, folder: Path) -> Resolved:
        """Fetch into `folder`. Raises like `resolve`."""
        found = self._bring(folder, self.sha256)
        return Resolved(revision=f"sha256:{found}", files=digest.files_of(folder))

    def fetch(self, resolved: Resolved, folder: Path) -> None:
        """Raises SourceError, and IntegrityError if the download differs from `resolved`."""
        self._bring(folder, resolved.revision.removeprefix("sha256:"))

    def _bring(self, folder: Path, expected: str | None) -> str:
        with tempfile.TemporaryDirectory(prefix="prebake-", dir=folder.parent) as beside:
            path = Path(beside) / self.name
            download(self.url, path, uri=self.uri)
            found = digest.sha256_of(path)
            if expected is not None and found != expected:
                raise IntegrityError(
                    f"{self.uri}: expected sha256 {expected}, found {found}: upstream has changed the file, or it was "
                    "damaged in transit; if you trust the new one, run `prebake lock` (and update `#sha256=`)"
                )
            if is_archive(self.name):
                unpack(path, folder)
            else:
                path.replace(folder / self.name)
        return found
