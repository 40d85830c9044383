"""`path:DIR`: a folder on this machine, relative to the folder of `models.toml`; all its files except hidden ones."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from prebake.baked.manifest import File, set_digest
from prebake.documents.messages import quote, reason
from prebake.errors import ConfigError, IntegrityError, SourceError
from prebake_build.files import digest
from prebake_build.files.progress import Progress, telling
from prebake_build.sources import Resolved


@dataclass(frozen=True, kw_only=True, slots=True)
class PathSource:
    """One local folder. All its files are used, without any selection."""

    uri: str
    folder: Path

    @classmethod
    def parse(cls, uri: str, rest: str, where: str, base: Path) -> PathSource:
        """Raises ConfigError that begins with `where`."""
        if not rest or "\0" in rest:
            raise ConfigError(f'{where}: {quote(uri)} is not of the form "path:FOLDER"')
        return cls(uri=uri, folder=base / rest)

    def resolve(self) -> Resolved:
        """Hash the files in place. Raises SourceError if the folder is missing, empty, unreadable or has symlinks."""
        files = self._files()
        return Resolved(revision=set_digest(files), files=files)

    def fetch(self, resolved: Resolved, folder: Path) -> None:
        """Copy exactly the files of `resolved`. Raises SourceError."""
        self._check()
        with Progress(self.uri, sum(file.size for file in resolved.files)) as progress:
            for file in resolved.files:
                target = folder / file.path
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    shutil.copyfile(self.folder / file.path, target)
                except (FileNotFoundError, PermissionError) as error:
                    raise SourceError(f"{self.uri}: cannot read {self.folder / file.path}: {reason(error)}") from error
                progress.add(file.size)

    def _files(self) -> tuple[File, ...]:
        self._check()
        try:
            with telling(f"{self.uri}: hashing", self._size()):
                files = digest.files_of(self.folder, hidden=False)
        except OSError as error:
            raise SourceError(f"{self.uri}: cannot read {error.filename or self.folder}: {reason(error)}") from error
        if not files:
            raise SourceError(f"{self.uri}: {self.folder} contains no files (hidden files do not count)")
        return files

    def _size(self) -> int:
        return sum((self.folder / path).stat().st_size for path in digest.paths_of(self.folder, hidden=False))

    def _check(self) -> None:
        if not self.folder.is_dir():
            raise SourceError(
                f"{self.uri}: there is no folder {quote(str(self.folder))} (paths are relative to models.toml)"
            )
        try:
            digest.paths_of(self.folder, hidden=False)
        except IntegrityError as error:
            raise SourceError(
                f"{self.uri}: {error}\n"
                "Only plain files can be copied. A folder of the Hugging Face cache is made of symlinks: "
                "copy it out with `hf download ORG/NAME --local-dir DIR`, or use an hf: source."
            ) from None
