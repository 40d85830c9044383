"""`hf:ORG/NAME[@REVISION]`: a model of the Hugging Face hub, at one commit.

Only the files that a PyTorch load needs are used: see `choose`. The hub publishes the sha256 of large files (LFS), but
for small files only git's own hash: these are downloaded and hashed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prebake.baked import layout
from prebake.baked.manifest import File
from prebake.documents.messages import quote, reason
from prebake.errors import ConfigError, PrebakeError, SourceError
from prebake_build.files import digest
from prebake_build.sources import Resolved, parts
from prebake_build.sources.pieces import in_parallel

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo

_URI = re.compile(r"([\w.-]+/[\w.-]+)(?:@([^\s@]+))?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TIMEOUT = 30.0

# In transformers' order, with only its default names; variants (fp16, adapters) must be requested explicitly.
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")

# Configuration, and the vocabulary files of transformers' tokenizers (VOCAB_FILES_NAMES, 5.23).
_SMALL = re.compile(
    r"(?:(?:generation_|preprocessor_|processor_|video_preprocessor_|tokenizer_|audio_tokenizer_)?config"
    r"|tokenizer|special_tokens_map|added_tokens|(?:entity_|target_)?vocab|vocab-(?:src|tgt)|normalizer|emoji"
    r"|word_shape|word_pronunciation|byte_maps|tekken|chat_template)\.json"
    r"|(?:vocab|merges|dict)\.txt|bpe\.codes|(?:source|target)\.spm"
    r"|(?:spiece|sentencepiece|sentencepiece\.bpe|tokenizer|spm|spm_char|tiktoken)\.model"
    r"|chat_template\.jinja|additional_chat_templates/[\w.-]+\.jinja",
    re.ASCII,
)

_ACCESS_HELP = (
    "set HF_TOKEN to a token that may read it; in an image build hand it over as a secret, never as a build argument: "
    "--secret id=hf_token,env=HF_TOKEN"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class HuggingFaceSource:
    """One model repository. Each method reads `HF_ENDPOINT` and `HF_TOKEN` when it is called."""

    uri: str
    repo: str
    """`ORG/NAME`"""
    revision: str | None
    """A branch, tag or commit; None for the default branch."""

    @classmethod
    def parse(cls, uri: str, rest: str, where: str, base: Path = Path()) -> HuggingFaceSource:
        """Raises ConfigError that begins with `where`."""
        found = _URI.fullmatch(rest)
        if not found or any(part in (".", "..") for part in found[1].split("/")):
            raise ConfigError(f'{where}: {quote(uri)} is not of the form "hf:ORG/NAME" or "hf:ORG/NAME@REVISION"')
        return cls(uri=uri, repo=found[1], revision=found[2])

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
            for path in choose(known, lambda path: bring(path).read_text(encoding="utf-8"), self.uri):
                lfs = known[path].lfs
                if lfs is not None and _SHA256.fullmatch(lfs.sha256):
                    files.append(File(path=path, size=lfs.size, sha256=lfs.sha256))
                else:
                    bring(path)
                    files.append(digest.file_of(Path(folder), path))
            return Resolved(revision=f"commit:{commit}", files=tuple(files), licence=_licence(info))

    def fetch(self, resolved: Resolved, folder: Path) -> None:
        """Download the files at the locked commit, several at a time.

        Files that a failed attempt completed are not downloaded again. Raises SourceError.
        """
        commit = resolved.revision.removeprefix("commit:")
        if not _COMMIT.fullmatch(commit):
            raise SourceError(f"{self.uri}: {quote(resolved.revision)} is not a commit of the hub: run `prebake lock`")
        # Not `folder` itself: the hub's client adds metadata files, by which it knows the files that are complete.
        kept = parts.folder_or(folder) / ".hub"
        with self._asking() as hub:
            in_parallel(
                lambda file: hub.hf_hub_download(self.repo, file.path, revision=commit, local_dir=kept), resolved.files
            )
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


def choose(paths: Iterable[str], read: Callable[[str], str], where: str) -> tuple[str, ...]:
    """The repository's files that a PyTorch load needs, sorted.

    Weights: the first of transformers' default names, safetensors before pickle, with all shards listed in the index
    (`read` returns its text). Also configuration, tokenizer, processor and chat templates. Never TensorFlow, Flax,
    ONNX, GGUF, images, or leftovers of training. Raises SourceError that begins with `where`.
    """
    there = set(paths)
    first = next((name for name in _WEIGHTS if name in there), None)
    if first is None:
        weights = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".msgpack", ".h5", ".onnx")
        found = sorted(path for path in there if path.endswith(weights))
        raise SourceError(
            f"{where}: has no PyTorch weights under a default name (expected one of {', '.join(_WEIGHTS)}; "
            f"found {', '.join(found) or 'none at all'}): name single files with a url: source, "
            "or convert a copy and use path:"
        )
    chosen = {first, *(path for path in there if _SMALL.fullmatch(path))}
    if first.endswith(".index.json"):
        shards = _shards(read(first), f"{where}: {first}")
        missing = sorted(shards - there)
        if missing:
            raise SourceError(f"{where}: {first} lists missing shards: {', '.join(missing)}")
        chosen |= shards
    return tuple(sorted(chosen))


def _shards(text: str, where: str) -> set[str]:
    try:
        names = set(json.loads(text)["weight_map"].values())
        if names and all(isinstance(name, str) and layout.is_inside(name) for name in names):
            return names
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise SourceError(f"{where}: is not an index of shards (expected a weight_map from tensors to files)")


def _licence(info: ModelInfo) -> str | None:
    """The licence's identifier from the model card, or its name if it has no identifier."""
    card = info.card_data
    licence = card.get("license") if card is not None else None
    if licence == "other" and card is not None:
        licence = card.get("license_name") or licence
    return licence if isinstance(licence, str) and licence else None


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in reason(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) if lines else type(error).__name__


def _redacted(text: str, token: str | None) -> str:
    """The message without the token, and without user and password of a mirror's address."""
    text = text.replace(token, "***") if token else text
    return re.sub(r"//[^/\s@]+@", "//***@", text)
