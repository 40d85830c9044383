"""The baked models by their sources: what a redirected load asks.

Two sources are the same if they are the same model at the same revision. A revision that a load requests matches the
commit that was baked, or the name under which `models.toml` declares it. If a load requests none, the only revision
baked matches; `main` counts as none, since libraries pass it on where the user named no revision.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prebake.baked import hub, layout
from prebake.baked.hub import TENSORS
from prebake.baked.model import BakedModel, find_models

PATH = "path:"
_SNAPSHOT = re.compile(r".*/models--([\w.-]+?)--([\w.-]+)/snapshots/([0-9a-f]{40})/(.+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The baked models of a root."""

    models: Sequence[BakedModel] = field(default=())

    @classmethod
    def read(cls, root: Path) -> Catalogue:
        """Read the manifests; a root that does not exist, or has no folder, gives an empty catalogue.

        Raises DocumentError or ConfigError for a folder that is not a baked model.
        """
        if not root.is_dir() or not any(path.is_dir() and path.name[0] != "." for path in root.iterdir()):
            return cls()
        return cls(find_models(root))

    def find(self, uri: str, class_: str | None = None) -> BakedModel | None:
        """The baked model of this source, as `models.toml` spells it, or None: the first of `candidates`."""
        return next(iter(self.candidates(uri, class_)), None)

    def candidates(self, uri: str, class_: str | None = None) -> list[BakedModel]:
        """The baked models of this source: those of this class (`family:class`) first, then others of its family.

        A single file (`TENSORS`) is no network, so it is among them only where no class is asked for, at the end.
        """
        family = (class_ or "").partition(":")[0]

        def distance(baked: BakedModel) -> tuple[bool, bool, bool]:
            manifest = baked.manifest
            return class_of(baked) != class_, manifest.family != family, manifest.family == TENSORS

        any_kind = class_ is None or family == TENSORS
        return sorted((b for b in self.matches(uri) if any_kind or b.manifest.family != TENSORS), key=distance)

    def matches(self, uri: str) -> tuple[BakedModel, ...]:
        """All baked models of this source."""
        if uri.startswith(hub.URI):
            return hub.requested(self.models, *hub.split(uri))
        if uri.startswith(PATH):
            return self._from_path(uri)
        return tuple(baked for baked in self.models if baked.manifest.source.uri == uri)

    def file(self, path: str) -> BakedModel | None:
        """The model that was baked from this one file of a `path:` source or of a repository: `file` beside the source
        names it.

        The source is a place, or a folder that links to the baked one, as images have it; of a repository, the commit's
        folder in a cache of the hub. The baked file stands for the one that it was made from.
        """
        for baked in self.models:
            declared, name = baked.manifest.source.uri, baked.manifest.options.get("file")
            if not declared.startswith(PATH) or not isinstance(name, str):
                continue
            place = path.removesuffix(f"/{name}")
            if place != path and (place == _place(declared) or os.path.realpath(place) == _real(baked)):
                return baked
        if found := _SNAPSHOT.fullmatch(path):
            return self.file_of(f"{hub.URI}{found[1]}/{found[2]}@{found[3]}", found[4]) or self.tensors_in(path)
        return self.tensors_in(path)

    def file_of(self, uri: str, file: str) -> BakedModel | None:
        """The model of the family `tensors` that was baked from this file of a repository."""
        of_tensors = (baked for baked in self.matches(uri) if baked.manifest.family == TENSORS)
        return next((baked for baked in of_tensors if baked.manifest.options.get("file") == file), None)

    def tensors_in(self, path: str) -> BakedModel | None:
        """The model of the family `tensors` that has its weights in this file of its baked folder."""
        real = os.path.realpath(path)
        return next((baked for baked in self.models if baked.manifest.family == TENSORS and Path(real) in
                     (weights.resolve() for weights in baked.weights)), None)  # fmt: skip

    def holding(self, path: str) -> BakedModel | None:
        """The model in whose baked folder this file lies, perhaps through links."""
        real = os.path.realpath(path)
        return next((baked for baked in self.models if Path(real).is_relative_to(_real(baked))), None)

    @property
    def described(self) -> str:
        """The models and their sources, for messages."""
        named = [f"{baked.name} ({baked.manifest.source.uri})" for baked in self.models]
        return ", ".join(named) or "nothing"

    def _from_path(self, uri: str) -> tuple[BakedModel, ...]:
        """By the folder's place; the baked folder itself, and a folder of links into it, are the model too."""
        asked = uri.removeprefix(PATH)
        absolute = os.path.abspath(asked)  # noqa: PTH100  # resolves no links
        real = os.path.realpath(asked)
        # a view's folder has links to files, so its configuration says where it leads
        beside = os.path.dirname(os.path.realpath(Path(asked, "config.json")))  # noqa: PTH120
        found = []
        for baked in self.models:
            declared = baked.manifest.source.uri
            same = declared.startswith(PATH) and _place(declared) == absolute
            if same or _real(baked) in (real, beside):
                found.append(baked)
        return tuple(found)


def class_of(baked: BakedModel) -> str:
    """The class as `models.toml` spells it, with its family."""
    return f"{baked.manifest.family}:{baked.manifest.class_}"


def catalogue() -> Catalogue:
    """The catalogue of this process: the models under `PREBAKE_ROOT`, read once."""
    root = layout.default_root()
    if root not in _read:
        _read[root] = Catalogue.read(root)
    return _read[root]


_read: dict[Path, Catalogue] = {}


def _real(baked: BakedModel) -> str:
    return os.path.realpath(baked.folder)


def _place(uri: str) -> str:
    return os.path.abspath(uri.removeprefix(PATH))  # noqa: PTH100
