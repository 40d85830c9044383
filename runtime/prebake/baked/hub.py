"""A view of baked models in the layout of the Hugging Face cache: folders of relative links.

::

    /models/.hub/                                 HF_HUB_CACHE
    └── models--ORG--NAME/
        ├── refs/main                             the commit, as text
        └── snapshots/COMMIT/config.json …        links: ../../../../NAME/config.json

Libraries that read a repository by its id find its files there without a network. The links are inside the baked tree,
so it can be copied, mounted read-only and read by any user.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from prebake.baked import layout
from prebake.baked.model import BakedModel

FOLDER = ".hub"
"""Folder of the view under the root of baked models; no model's name begins with a dot."""
URI = "hf:"
DEFAULT_BRANCH = "main"

COMMIT = re.compile(r"[0-9a-f]{40}")
_REPO = re.compile(r"[\w.-]+(?:/[\w.-]+)?", re.ASCII)
_REF = re.compile(r"[\w.-]+(?:/[\w.-]+)*", re.ASCII)
_OWN = (layout.STRUCTURE, layout.BUFFERS)
"""Files of a baked model that no library reads."""
TENSORS = "tensors"
"""The family of single files, whose option `file` is their path in the repository."""


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """The content of a view."""

    links: Mapping[str, str] = field(default_factory=dict)
    """Path in the view → path of the file under the root of baked models."""
    refs: Mapping[str, str] = field(default_factory=dict)
    """Path in the view → commit."""

    def __bool__(self) -> bool:
        return bool(self.links)


def split(uri: str) -> tuple[str, str | None]:
    """`ORG/NAME` and the revision, or None, of `hf:ORG/NAME@REVISION`; the commit of `hf:ORG/NAME@NAME@COMMIT`."""
    repo, *revisions = uri.removeprefix(URI).split("@")
    return repo, revisions[-1] if revisions else None


def name_in(uri: str) -> str | None:
    """The branch or tag in the source; `main` without a revision, None if it has the commit alone."""
    _, *revisions = uri.removeprefix(URI).split("@")
    name = revisions[0] if revisions else DEFAULT_BRANCH
    return None if COMMIT.fullmatch(name) else name


def repo_of(baked: BakedModel) -> str | None:
    """`ORG/NAME` of a model from the hub, else None."""
    uri = baked.manifest.source.uri
    return split(uri)[0] if uri.startswith(URI) else None


def declared_name(baked: BakedModel) -> str | None:
    """The branch or tag that `models.toml` names; `main` without a revision, None for a commit alone."""
    return name_in(baked.manifest.source.uri)


def commit_of(baked: BakedModel) -> str | None:
    """The commit that was baked, or None for a model that does not come from the hub."""
    kind, _, commit = baked.manifest.source.revision.partition(":")
    return commit if kind == "commit" and COMMIT.fullmatch(commit) else None


def requested(models: Iterable[BakedModel], repo: str, revision: str | None) -> tuple[BakedModel, ...]:
    """The models of this repository at this revision: its commit, or the name that `models.toml` declares.

    Without a revision, or for `main`: the models that were baked from the default branch, or else the only commit that
    was declared without a name, or else the only revision that was baked. Libraries pass `main` on where their user
    named none, so the two can't be told apart.
    """
    of_repo = [baked for baked in models if repo_of(baked) == repo]
    if revision is not None and revision != DEFAULT_BRANCH:
        return tuple(baked for baked in of_repo if revision in (commit_of(baked), declared_name(baked)))
    named = [baked for baked in of_repo if declared_name(baked) == DEFAULT_BRANCH]
    unnamed = [baked for baked in of_repo if declared_name(baked) is None]
    for found in (named, unnamed, of_repo):
        if len({baked.manifest.source.revision for baked in found}) == 1:
            return tuple(found)
    return ()


def folder_of(repo: str) -> str:
    """The name of a repository's folder in the cache of huggingface_hub."""
    return "models--" + repo.replace("/", "--")


def view_of(models: Iterable[BakedModel]) -> View:
    """The view of these models. Of several models with the same commit, files of the first are linked.

    The weights of a single file (`TENSORS`) are no weights of the repository's network: they are linked under the name
    that the file has upstream, and only if it has the format of a baked file.
    """
    links: dict[str, str] = {}
    refs: dict[str, str] = {}
    known = list(models)
    for baked in known:
        repo, commit = repo_of(baked), commit_of(baked)
        if repo is None or commit is None or not _REPO.fullmatch(repo) or ".." in repo:
            continue
        place = folder_of(repo)
        for file in baked.manifest.files:
            if (name := _name_in_view(baked, file.path)) is not None:
                links.setdefault(f"{place}/snapshots/{commit}/{name}", f"{baked.folder.name}/{file.path}")
        for name in (declared_name(baked), DEFAULT_BRANCH):
            if name is None or not _is_ref(name):
                continue
            if found := requested(known, repo, name):
                refs[f"{place}/refs/{name}"] = commit_of(found[0]) or commit
    return View(links=links, refs=refs)


def _name_in_view(baked: BakedModel, path: str) -> str | None:
    """What a baked model's file is called in the commit's folder; None if it is not there."""
    weights = baked.manifest.weights.all_files
    if baked.manifest.family == TENSORS and path in weights:
        file = single_file(baked)
        return file if file is not None and file.endswith(".safetensors") and len(weights) == 1 else None
    return None if path in _OWN else path


def single_file(baked: BakedModel) -> str | None:
    """The path in its repository of the file that the model was baked from; None for networks, and for a path that
    leads out of the repository."""
    file = baked.manifest.options.get("file")
    if baked.manifest.family != TENSORS or not isinstance(file, str):
        return None
    inside = file.isprintable() and all(part not in ("", ".", "..") for part in file.split("/"))
    return file if inside else None


def write(view: View, folder: Path, models: str) -> None:
    """Write the view into an existing folder. `models` is the root of baked models: an absolute path, or one relative
    to the folder, as `..`. Raises OSError.
    """
    for path, target in view.links.items():
        link = folder / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(link_target(path, models, target))
    for path, commit in view.refs.items():
        ref = folder / path
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(commit, encoding="ascii")


def link_target(path: str, models: str, target: str) -> str:
    """What the link at `path` of a view holds; `models` as in `write`."""
    up = "" if models.startswith("/") else "../" * (len(PurePosixPath(path).parts) - 1)
    return f"{up}{models}/{target}"


def is_complete(view: View, folder: Path, root: Path) -> bool:
    """Whether the folder holds this view: every link leads to its file, every ref to its commit."""
    try:
        return all((folder / path).read_text(encoding="ascii") == commit for path, commit in view.refs.items()) and all(
            (folder / path).samefile(root / target) for path, target in view.links.items()
        )
    except (OSError, ValueError):
        return False


def _is_ref(name: str) -> bool:
    return bool(_REF.fullmatch(name)) and not any(part in (".", "..") for part in name.split("/"))
