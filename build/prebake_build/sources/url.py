"""`url:https://…[#sha256=…]`: one file, or one archive that is unpacked into the checkpoint.

The revision is the sha256 of what was downloaded: what `#sha256=` pins, and what `sha256sum` prints.
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
    """What the URI pins."""

    @classmethod
    def parse(cls, uri: str, rest: str, where: str) -> UrlSource:
        """Raises ConfigError, begun with `where`."""
        url, hash_, fragment = rest.partition("#")
        check_url(url, where)
        pin = _PIN.fullmatch(fragment)
        if hash_ and not pin:
            raise ConfigError(f'{where}: {quote("#" + fragment)} is not "#sha256=" and 64 hexadecimal digits')
        name = unquote(urlsplit(url).path.rpartition("/")[2])
        if not layout.is_inside(name) or "/" in name or name.startswith("."):
            raise ConfigError(
                f"{where}: {quote(url)} ends in no file name (a file, or an archive: {', '.join(SUFFIXES)})"
            )
        return cls(uri=uri, url=url, name=name, sha256=pin[1].lower() if pin else None)

    def resolve(self) -> Resolved:
        """Fetch, hash, and throw away. Raises SourceError, and IntegrityError where the URI's pin does not fit."""
        with tempfile.TemporaryDirectory(prefix="prebake-") as folder:
            return self.resolve_into(Path(folder))

    def resolve_into(self, folder: Path) -> Resolved:
        """Fetch into `folder`, and say what it was. Raises as `resolve`."""
        found = self._bring(folder, self.sha256)
        return Resolved(revision=f"sha256:{found}", files=digest.files_of(folder))

    def fetch(self, resolved: Resolved, folder: Path) -> None:
        """Raises SourceError, and IntegrityError where the download is not that of `resolved`."""
        self._bring(folder, resolved.revision.removeprefix("sha256:"))

    def _bring(self, folder: Path, expected: str | None) -> str:
        with tempfile.TemporaryDirectory(prefix="prebake-", dir=folder.parent) as beside:
            path = Path(beside) / self.name
            download(self.url, path, uri=self.uri)
            found = digest.sha256_of(path)
            if expected is not None and found != expected:
                raise IntegrityError(
                    f"{self.uri}: expected sha256 {expected}, found {found}: upstream has changed the file, or it was "
                    "damaged on the way; take the new one with `prebake lock` (and in `#sha256=`) if you trust it"
                )
            if is_archive(self.name):
                unpack(path, folder)
            else:
                path.replace(folder / self.name)
        return found
