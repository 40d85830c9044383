"""Sources of loads by repository id or path, for the hooks of libraries that read the Hugging Face hub."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prebake.adopt import copies
from prebake.adopt.catalogue import PATH
from prebake.adopt.loads import Load
from prebake.adopt.view import process_view
from prebake.baked import hub

if TYPE_CHECKING:
    from prebake.baked.model import BakedModel

_REPO = re.compile(r"[\w.-]+(?:/[\w.-]+)?", re.ASCII)
"""`ORG/NAME`, or the name alone of one of the hub's first models: `gpt2`."""
_SNAPSHOT = re.compile(r"[/\\]snapshots[/\\]([0-9a-f]{40})[/\\]")


def uri_of(name: Any, revision: Any = None) -> str | None:
    """The source of a repository id (at a revision) or a folder, as `models.toml` spells it; None if it is neither.

    A folder that has the copy of a repository is the repository. `main` is left out: libraries pass it on where the
    user named no revision.
    """
    text = os.fspath(name) if isinstance(name, (str, os.PathLike)) else ""
    if isinstance(text, bytes) or not text:
        return None
    if os.path.exists(text):  # noqa: PTH110
        return copies.repository(text) or PATH + text
    return repo_uri(text, revision)


def pinned(uri: str | None, cache_dir: Any, file: str, subfolder: str | None = None) -> str | None:
    """The source with the commit that is in the cache, if the hub's client has one of its files there."""
    if uri is None or not uri.startswith(hub.URI):
        return uri
    from huggingface_hub import try_to_load_from_cache

    repo, revision = hub.split(uri)
    path = try_to_load_from_cache(
        repo, f"{subfolder}/{file}" if subfolder else file, cache_dir=cache_dir, revision=revision
    )
    found = _SNAPSHOT.search(path) if isinstance(path, str) else None
    return f"{hub.URI}{repo}@{found[1]}" if found else uri


def repo_uri(repo: Any, revision: Any = None) -> str | None:
    """The source of a repository id at a revision; None if it is no such id."""
    revision = getattr(revision, "initial", revision)  # a ResolvedRevision of huggingface_hub
    if not isinstance(repo, str) or not _REPO.fullmatch(repo):
        return None
    at = f"@{revision}" if revision and revision != hub.DEFAULT_BRANCH else ""
    return f"{hub.URI}{repo}{at}"


def completed(load: Load, path: object) -> Load:
    """The load with the commit in its source, from the path of a file in the cache that it returned."""
    found = _SNAPSHOT.search(f"{path}/")
    if not found or load.uri is None or not load.uri.startswith(hub.URI):
        return load
    return replace(load, uri=f"{hub.URI}{hub.split(load.uri)[0]}@{found[1]}")


def snapshot_of(baked: BakedModel) -> Path | None:
    """The view's folder of the model's commit; None if the model is not from the hub, or there is no view."""
    repo, commit = hub.repo_of(baked), hub.commit_of(baked)
    if repo is None or commit is None or (view := process_view()) is None:
        return None
    return view / hub.folder_of(repo) / "snapshots" / commit


def name_for(baked: BakedModel, name: Any) -> Any:
    """What the library's own function can load the model by, without a network: the name that the user passed if that
    is a folder, or a repository in the view; else the baked folder."""
    if os.path.isdir(name) or snapshot_of(baked) is not None:  # noqa: PTH112
        return name
    return str(baked.folder)
