"""Sources that copy a folder, and do in the middle what a test tells them to."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from prebake.baked.manifest import set_digest
from prebake_build.files import digest
from prebake_build.sources import Resolved


@dataclass
class FakeSource:
    """Copies `folder`; counts, and can be told to do something in the middle."""

    folder: Path
    uri: str = "fake:tiny"
    fetched: int = 0
    meanwhile: Callable[[Path], None] = field(default=lambda folder: None)

    def resolve(self) -> Resolved:
        files = digest.files_of(self.folder)
        return Resolved(revision=set_digest(files), files=files)

    def fetch(self, resolved: Resolved, folder: Path) -> None:
        self.fetched += 1
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        self.meanwhile(folder)


@dataclass
class FetchingSource(FakeSource):
    def resolve_into(self, folder: Path) -> Resolved:
        resolved = self.resolve()
        self.fetch(resolved, folder)
        return resolved
