"""Which files of a hub's repository are fetched: the weights that a family loads, and every small file.

A repository often has the same weights several times: as safetensors and as a pickle, in half precision, for other
frameworks. Of these, one is taken. The small files are taken all, because a family may need any of them; code, pickles,
weights of other frameworks, media and leftovers of training are never taken.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from prebake.baked import layout
from prebake.documents.messages import quote
from prebake.errors import SourceError

SMALL = 16 * 1024**2
"""Bytes up to which a file of an unknown name is a small file."""


def with_index(*names: str) -> tuple[str, ...]:
    """Each name, followed by the name of its index of shards."""
    return tuple(name for first in names for name in (first, f"{first}.index.json"))


TRANSFORMERS = with_index("model.safetensors", "pytorch_model.bin")
DIFFUSERS = with_index(
    "diffusion_pytorch_model.safetensors", "model.safetensors", "diffusion_pytorch_model.bin", "pytorch_model.bin"
)
OPEN_CLIP = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
ANY = (*TRANSFORMERS, *OPEN_CLIP, *with_index("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What a family needs of a repository."""

    weights: tuple[str, ...] = TRANSFORMERS
    """Names of weights, or of their index of shards; the first that a folder has is taken."""
    index: str | None = None
    """A file of the repository that lists folders with weights of their own, if there is one."""
    folders: Callable[[str, str], Iterable[str]] | None = None
    """The folders in the text of `index`, with `/` at the end, or empty for the repository itself. The second argument
    begins the message of the SourceError for a malformed text."""
    variant: str | None = None
    """The variant of the weights, such as `fp16`. A folder without it gives its usual weights."""
    files: tuple[str, ...] = ()
    """The files of weights to take, instead of looking for names."""
    instead: Mapping[str, Wanted] = field(default_factory=dict)
    """A file → what is wanted if the repository has it: while the family is not known."""


_KNOWN = re.compile(
    r"(?:(?:generation_|preprocessor_|processor_|video_preprocessor_|tokenizer_|audio_tokenizer_)?config"
    r"|tokenizer|special_tokens_map|added_tokens|(?:entity_|target_)?vocab|vocab-(?:src|tgt)|normalizer|emoji"
    r"|word_shape|word_pronunciation|byte_maps|tekken|chat_template)\.json"
    r"|(?:vocab|merges|dict)\.txt|bpe\.codes|(?:source|target)\.spm"
    r"|(?:spiece|sentencepiece|sentencepiece\.bpe|tokenizer|spm|spm_char|tiktoken)\.model"
    r"|chat_template\.jinja|additional_chat_templates/[\w.-]+\.jinja",
    re.ASCII,
)
"""Configuration, and the vocabulary files of transformers' tokenizers (VOCAB_FILES_NAMES, 5.23): taken at any size."""

_CODE = "py pyc pyx ipynb sh bat ps1 js mjs ts wasm so dll dylib exe jar c cc cpp cu cuh h hpp rs go lua rb pl swift"
_PICKLES = "bin pt pth ckpt pkl pickle joblib dill npy npz"
_OTHER_WEIGHTS = (
    "safetensors h5 hdf5 keras msgpack onnx onnx_data ort pb tflite mlmodel mlpackage ot gguf ggml engine plan xml"
)
_OTHERS = (
    "zip tar tgz 7z rar parquet arrow log md rst pdf html "
    "png jpg jpeg gif webp svg bmp ico mp4 mov avi webm wav mp3 flac ogg"
)
_NEVER = frozenset(" ".join((_CODE, _PICKLES, _OTHER_WEIGHTS, _OTHERS)).split())
"""Suffixes of files that are not taken as small files, wherever in the name they stand."""

_LEFTOVER = re.compile(
    r"(?:trainer_state|training_args|(?:all|train|eval|test|predict)_results)\.json|events\.out\..*"
    r"|adapter_config\.json|.*\.(?:safetensors|bin)(?:\.\w+)?\.index(?:\.\w+)?\.json"
)
"""Leftovers of training, adapters beside full weights, and indexes of weights that are not taken."""

_OTHER_FOLDERS = re.compile(
    r"onnx|openvino|coreml|tensorrt|tflite|flax|tf|gguf|mlx|original|runs|logs|wandb|samples|examples|assets|images"
    r"|figures|docs|eval|eval_results|checkpoint-.*|global_step.*"
)


def choose(
    paths: Iterable[str],
    read: Callable[[str], str],
    where: str,
    wanted: Wanted | None = None,
    sizes: Mapping[str, int] | None = None,
) -> tuple[str, ...]:
    """The repository's files to fetch, sorted.

    `read` returns the text of one of `paths`. `sizes` are in bytes; of a file whose size is unknown, only the name
    decides. Raises SourceError, which begins with `where`, if there are no weights, or an index is malformed.
    """
    there, wanted, sizes = set(paths), wanted or Wanted(), sizes or {}
    for name, instead in wanted.instead.items():
        if name in there:
            wanted = replace(instead, variant=instead.variant or wanted.variant)
            break
    folders = [""]
    if wanted.index is not None and wanted.folders is not None and wanted.index in there:
        folders = list(wanted.folders(read(wanted.index), f"{where}: {wanted.index}"))
    chosen = _declared(there, wanted, where) if wanted.files else _found(there, folders, wanted, where)
    for name in sorted(chosen):
        if name.endswith(".json"):
            shards = {_beside(name, shard) for shard in _shards(read(name), f"{where}: {name}")}
            if missing := sorted(shards - there):
                raise SourceError(f"{where}: {name} lists missing shards: {', '.join(missing)}")
            chosen |= shards
    listed = wanted.index is not None and wanted.index in there
    small = {path for path in there if _is_small(path, sizes.get(path), folders if listed else None)}
    return tuple(sorted(chosen | small))


def _declared(there: set[str], wanted: Wanted, where: str) -> set[str]:
    if missing := sorted(set(wanted.files) - there):
        raise SourceError(f"{where}: has no {', '.join(missing)} (found {_found_weights(there)})")
    return set(wanted.files)


def _found(there: set[str], folders: list[str], wanted: Wanted, where: str) -> set[str]:
    """The weights of each folder, or their index of shards."""
    variants = tuple(_variant(name, wanted.variant) for name in wanted.weights) if wanted.variant else ()
    chosen: set[str] = set()
    for folder in folders:
        names = (f"{folder}{name}" for name in (*variants, *wanted.weights))
        if (first := next((name for name in names if name in there), None)) is not None:
            chosen.add(first)
    if wanted.variant and not any(PurePosixPath(path).name in variants for path in chosen):
        raise SourceError(
            f"{where}: has no weights of the variant {quote(wanted.variant)} (found {_found_weights(there)})"
        )
    if not chosen:
        raise SourceError(
            f"{where}: has no PyTorch weights under a default name (expected one of {', '.join(wanted.weights)}; "
            f"found {_found_weights(there)}): name single files with a url: source, or convert a copy and use path:"
        )
    return chosen


def _found_weights(there: set[str]) -> str:
    weights = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".msgpack", ".h5", ".onnx")
    found = sorted(path for path in there if path.endswith(weights))
    return ", ".join(found[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "") or "none at all"


def _variant(name: str, variant: str) -> str:
    """`model.fp16.safetensors`, `model.safetensors.index.fp16.json`: how transformers and diffusers name variants."""
    stem, dot, suffix = name.rpartition(".")
    return f"{stem}.{variant}{dot}{suffix}"


def _is_small(path: str, size: int | None, folders: list[str] | None) -> bool:
    """Whether it is a small file to take; `folders` are those with components, None if there is no list of them."""
    *parents, name = path.split("/")
    if not layout.is_inside(path) or any(part.startswith(".") for part in (*parents, name)):
        return False
    if _KNOWN.fullmatch(path):
        return True
    if folders is not None and parents and f"{parents[0]}/" not in folders:
        return False
    if _LEFTOVER.fullmatch(name) or any(_OTHER_FOLDERS.fullmatch(part) for part in parents):
        return False
    if _NEVER.intersection(suffix[1:].lower() for suffix in PurePosixPath(name).suffixes):
        return False
    return bool(folders is not None and parents and _KNOWN.fullmatch(name)) or (size is not None and size <= SMALL)


def _beside(index: str, shard: str) -> str:
    return f"{index[: index.rfind('/') + 1]}{shard}"


def _shards(text: str, where: str) -> set[str]:
    try:
        names = set(json.loads(text)["weight_map"].values())
        if names and all(isinstance(name, str) and layout.is_inside(name) for name in names):
            return names
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise SourceError(f"{where}: is not an index of shards (expected a weight_map from tensors to files)")
