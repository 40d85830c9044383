"""`hf:ORG/NAME[@REVISION]`: a model of the Hugging Face hub, at one commit.

`hf:ORG/NAME@NAME@COMMIT` pins the commit, and keeps the branch or tag by which the service asks for it. The hub's first
models have no ORG: `hf:gpt2`; the hub redirects them.

Of its files, `choose` takes those that the model's family needs. The hub publishes the sha256 of large files (LFS), but
for small files only git's own hash: these are downloaded and hashed.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from prebake.baked.manifest import File
from prebake.documents.messages import quote, reason
from prebake.errors import ConfigError, PrebakeError, SourceError
from prebake_build.files import digest
from prebake_build.files.progress import Progress
from prebake_build.sources import Resolved, parts
from prebake_build.sources.pieces import in_parallel
from prebake_build.sources.selection import Wanted, choose

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo

_URI = re.compile(r"([\w.-]+(?:/[\w.-]+)?)(?:@([^\s@]+)(?:@([0-9a-f]{40}))?)?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TIMEOUT = 30.0

_ACCESS_HELP = (
    "set HF_TOKEN to a token that may read it; in an image build hand it over as a secret, never as a build argument: "
    "--secret id=hf_token,env=HF_TOKEN"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class HuggingFaceSource:
    """One model repository. Each method reads `HF_ENDPOINT` and `HF_TOKEN` when it is called."""

    uri: str
    repo: str
    """`ORG/NAME`, or `NAME`"""
    revision: str | None
    """A commit, branch or tag; None for the default branch."""
    wanted: Wanted = field(default_factory=Wanted)
    """What the model's family needs."""

    @classmethod
    def parse(cls, uri: str, rest: str, where: str, base: Path = Path()) -> HuggingFaceSource:
        """Raises ConfigError that begins with `where`."""
        found = _URI.fullmatch(rest)
        if not found or any(part in (".", "..") for part in found[1].split("/")):
            raise ConfigError(
                f'{where}: {quote(uri)} is not of the form "hf:ORG/NAME", "hf:ORG/NAME@REVISION" or '
                '"hf:ORG/NAME@NAME@COMMIT"'
            )
        return cls(uri=uri, repo=found[1], revision=found[3] or found[2])

    def wanting(self, wanted: Wanted) -> HuggingFaceSource:
        """The same repository, of which other files are wanted."""
        return replace(self, wanted=wanted)

    def resolve(self) -> Resolved:
        """Ask the hub for the commit, the files and the licence. Raises SourceError."""
        with tempfile.TemporaryDirectory(prefix="prebake-") as folder, self._asking() as hub:
            info = hub.model_info(self.repo, revision=self.revision, files_metadata=True, timeout=_TIMEOUT)
            commit = info.sha or ""
            if not _COMMIT.fullmatch(commit):
                raise SourceError(f"{self.uri}: {hub.endpoint} returned no commit (found {quote(commit)})")
            known = {sibling.rfilename: sibling for sibling in info.siblings or ()}

            def bring(path: str) -> Path:
                return Path(hub.hf_hub_download(self.repo, path, revision=commit, local_dir=folder))

            files = []
            sizes = {path: sibling.size for path, sibling in known.items() if sibling.size is not None}
            for path in choose(known, lambda path: _text(bring(path), self.uri), self.uri, self.wanted, sizes):
                lfs = known[path].lfs
                if lfs is not None and _SHA256.fullmatch(lfs.sha256):
                    files.append(File(path=path, size=lfs.size, sha256=lfs.sha256))
                else:
                    bring(path)
                    files.append(digest.file_of(Path(folder), path))
            return Resolved(revision=f"commit:{commit}", files=tuple(files), licence=_licence(info))

    def commit(self) -> str:
        """The commit of the revision, from the hub alone. Raises SourceError."""
        with self._asking() as hub:
            commit = hub.model_info(self.repo, revision=self.revision, timeout=_TIMEOUT).sha or ""
            if not _COMMIT.fullmatch(commit):
                raise SourceError(f"{self.uri}: {hub.endpoint} returned no commit (found {quote(commit)})")
            return commit

    def fetch(self, resolved: Resolved, folder: Path) -> None:
        """Download the files at the locked commit, several at a time.

        Files that a failed attempt completed are not downloaded again. Raises SourceError.
        """
        commit = resolved.revision.removeprefix("commit:")
        if not _COMMIT.fullmatch(commit):
            raise SourceError(f"{self.uri}: {quote(resolved.revision)} is not a commit of the hub: run `prebake lock`")
        # Not `folder` itself: the hub's client adds metadata files, by which it knows the files that are complete.
        kept = parts.folder_or(folder) / ".hub"
        total = sum(file.size for file in resolved.files)
        try:
            # on a terminal, the hub's client draws a bar for each file
            with self._asking() as hub, Progress(self.uri, total, bar=False) as progress:

                def bring(file: File) -> None:
                    hub.hf_hub_download(self.repo, file.path, revision=commit, local_dir=kept)
                    progress.add(file.size)

                in_parallel(bring, resolved.files)
        except BaseException:
            if not any((kept / file.path).exists() for file in resolved.files):
                shutil.rmtree(kept, ignore_errors=True)
            raise
        for file in resolved.files:
            (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
            shutil.move(kept / file.path, folder / file.path)
        shutil.rmtree(kept)

    @contextmanager
    def _asking(self) -> Iterator[HfApi]:
        """A client of the hub. Any error inside the block becomes a SourceError without secrets."""
        from huggingface_hub import HfApi, get_token
        from huggingface_hub.errors import HfHubHTTPError

        endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
        token = get_token()
        # The base class of the HTTP client's errors: of requests before version 1.0, of httpx or httpx2 after.
        failures: tuple[type[BaseException], ...] = (*HfHubHTTPError.__bases__, OSError, ValueError)
        try:
            yield HfApi(endpoint=endpoint, token=token or False, library_name="prebake-build")
        except PrebakeError:
            raise
        except failures as error:
            if isinstance(error, OSError) and error.errno in digest.FULL:
                raise
            message = self._explain(error, _redacted(endpoint, token), bool(token))
            # No cause: the client's errors contain the request, and with it the token.
            raise SourceError(f"{self.uri}: {_redacted(message, token)}") from None

    def _explain(self, error: BaseException, endpoint: str, has_token: bool) -> str:
        """What went wrong, and how to fix it."""
        from huggingface_hub import errors

        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, errors.GatedRepoError):
            who = "the token in use has no access" if has_token else "no token is set"
            return f"this model is gated, and {who}: ask for access at {endpoint}/{self.repo}, then {_ACCESS_HELP}"
        if isinstance(error, errors.RepositoryNotFoundError):
            private = "the token in use cannot read it" if has_token else f"it is private: {_ACCESS_HELP}"
            return f"{endpoint} knows no model {quote(self.repo)}: check the spelling; or {private}"
        if isinstance(error, errors.RevisionNotFoundError):
            return (
                f"{quote(self.repo)} has no revision {quote(self.revision or 'main')}: check the branch, tag or commit "
                f"at {endpoint}/{self.repo}/commits/main, then run `prebake lock`"
            )
        if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
            return f"a locked file is gone from {endpoint}/{self.repo}: run `prebake lock` ({_first_line(error)})"
        if isinstance(error, errors.OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE forbids asking the hub: unset it for `prebake lock` and for the first bake"
        if status == 401:
            return f"{endpoint} refuses the token in use: renew it at {endpoint}/settings/tokens, then {_ACCESS_HELP}"
        if status is not None:
            return f"{endpoint} answers {status}: {_first_line(error)}"
        cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) else None
        return (
            f"cannot reach the hub at {endpoint}: {_first_line(cause or error)}: check the network and the proxy "
            "settings, or name a mirror with HF_ENDPOINT"
        )


def _text(path: Path, uri: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SourceError(f"{uri}: {path.name} is not UTF-8: {error.reason} at byte {error.start}") from None


def _licence(info: ModelInfo) -> str | None:
    """The licence's identifier from the model card, or its name if it has no identifier."""
    card = info.card_data
    licence = card.get("license") if card is not None else None
    if licence == "other" and card is not None:
        licence = card.get("license_name") or licence
    return licence if isinstance(licence, str) and licence else None


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in reason(error).splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("For more information check: ")]  # what a status means
    return " ".join(lines[:2]) if lines else type(error).__name__


def _redacted(text: str, token: str | None) -> str:
    """The message without the token, and without user and password of a mirror's address."""
    text = text.replace(token, "***") if token else text
    return re.sub(r"//[^/\s@]+@", "//***@", text)
