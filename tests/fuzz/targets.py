"""What is fuzzed: a parser, valid documents to start from, and what must hold whatever it is given."""

from __future__ import annotations

import hashlib
import json
import math
import resource
import tempfile
import tracemalloc
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from fuzz import mutators
from helpers.runtime_fakes import SHA, entry, manifest_of, safetensors_bytes
from prebake.baked import layout
from prebake.baked.header import ITEM_SIZES, read_header
from prebake.baked.manifest import File, Loading, Manifest, Weights
from prebake.baked.warmup import MAX_ELEMENTS, METHODS, Inputs, Numbers, Value, Warmup, Zeros, spell_warmup
from prebake.errors import ConfigError, DocumentError, TensorFileError
from prebake_build.declared.lock import Lock
from prebake_build.declared.spec import read_spec

ADDRESS_SPACE = 2 * 1024**3
"""Bytes that a run may have beyond what it starts with: whatever wants more gets a MemoryError."""


class FindingError(AssertionError):
    """Something that must not happen, happened."""


@dataclass(frozen=True, slots=True)
class Target:
    """One parser."""

    seeds: Callable[[], Sequence[bytes]]
    check: Callable[[bytes], None]
    """Raises what is a finding, and nothing else."""
    mutate: mutators.Mutator
    max_size: int
    """Bytes of an input."""


def new_folder() -> Path:
    """Its parent is `TMPDIR`, which the command removes: libFuzzer ends the process without any cleaning up."""
    return Path(tempfile.mkdtemp(prefix="prebake-fuzz-"))


def limit_memory() -> None:
    """Hold this process to what it has now and `ADDRESS_SPACE`."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _bounded(read: Callable[[], Any], data: bytes, per_byte: int) -> Any:
    """What `read` gives; every 16th input is traced, and must not allocate more than `per_byte` times its size."""
    if zlib.crc32(data) % 16:
        return read()
    tracemalloc.start()
    try:
        return read()
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        if peak > 1_000_000 + per_byte * len(data):
            raise FindingError(f"{peak:,} bytes were allocated for an input of {len(data):,}")


def _speakable(error: Exception) -> None:
    """A message goes into logs and HTTP answers: it must be text that has an encoding."""
    str(error).encode()


# --- header ------------------------------------------------------------------------------------------------------


def _header_seeds() -> list[bytes]:
    tensors = {"a": entry("F32", [2, 3], 0, 24), "b": entry("I64", [], 24, 32), "c": entry("BF16", [0, 5], 32, 32)}
    every, at = {}, 0
    for dtype, size in ITEM_SIZES.items():
        every[dtype] = entry(dtype, [1, 2], at, at + 2 * size)
        at += 2 * size
    return [
        safetensors_bytes({}),
        safetensors_bytes({"__metadata__": {"format": "pt"}, **tensors}, bytes(32)),
        safetensors_bytes(every, bytes(at)),
        safetensors_bytes({"a": entry("U8", [0, 2**62, 2**62], 0, 0)}),
    ]


class _HeaderCheck:
    def __init__(self) -> None:
        self.path = new_folder() / layout.WEIGHTS

    def __call__(self, data: bytes) -> None:
        self.path.write_bytes(data)
        try:
            header = _bounded(lambda: read_header(self.path), data, 200)
        except TensorFileError as error:
            _speakable(error)
            return
        if header.data_start + header.size != len(data):
            raise FindingError("the header covers another size than the file's")
        position = 0
        for item in sorted(header.entries.values(), key=lambda item: (item.begin, item.end)):
            count = ITEM_SIZES[item.dtype]
            for size in item.shape:
                count *= size
            if item.begin != position or item.end - item.begin != count or item.end > header.size:
                raise FindingError(f"{item} does not lie where the last one ended, or in the file")
            position = item.end


# --- manifest ----------------------------------------------------------------------------------------------------


def _manifest_seeds() -> list[bytes]:
    files = tuple(File(path=path, size=10, sha256=SHA) for path in ("a/b.json", layout.WEIGHTS, layout.STRUCTURE))
    weights = Weights(files=(layout.WEIGHTS,), buffers=None, tensors=2, bytes=9, dtypes={"F16": 1}, aliases={"a": "b"})
    rich = manifest_of(
        "model-2", options={"dtype": "float32", "arguments": {"x": [1, 2.5, None, "é"]}},
        loading=Loading(retries=2, timeout=1.5, required=False), files=files, weights=weights,
        structure=layout.STRUCTURE, requires={"torch": "2.13.0"},
    )  # fmt: skip
    inputs: dict[str, Value] = {
        "x": Numbers(values=((1, 2), (3, 4)), dtype="int64"), "y": Zeros(shape=(1, 3)), "z": "a", "flag": True
    }  # fmt: skip
    warmups: tuple[Warmup, ...] = (
        "app.warm:f", Inputs(values=inputs), Inputs(method="generate", values={"max_new_tokens": 1})
    )  # fmt: skip
    warm = [manifest_of(loading=Loading(warmup=warmup)).text.encode() for warmup in warmups]
    return [
        *warm,
        manifest_of().text.encode(),
        rich.text.encode(),
        manifest_of(files=(), weights=weights).text.encode(),
    ]


class _ManifestCheck:
    def __init__(self) -> None:
        self.folder = new_folder()

    def __call__(self, data: bytes) -> None:
        (self.folder / layout.MANIFEST).write_bytes(data)
        try:
            manifest = _bounded(lambda: Manifest.read(self.folder), data, 400)
        except DocumentError as error:
            _speakable(error)
            return
        for name in (*(file.path for file in manifest.files), *manifest.weights.all_files, manifest.structure or "x"):
            parts = PurePosixPath(name).parts
            if not layout.is_inside(name) or name.startswith("/") or ".." in parts or "\0" in name:
                raise FindingError(f"{name!r} leaves the folder")
        (self.folder / layout.MANIFEST).write_text(manifest.text, encoding="utf-8")
        again = Manifest.read(self.folder)
        _check_warmup(manifest.loading.warmup)
        if again != manifest or again.text != manifest.text:
            raise FindingError("the manifest's text reads back as another manifest")


def _check_warmup(warmup: Warmup | None) -> None:
    """What a warm-up could do: `generate` with code, more memory than is allowed, an argument with no such name."""
    if not isinstance(warmup, Inputs):
        return
    if warmup.method not in METHODS or not all(name.isidentifier() for name in warmup.values):
        raise FindingError(f"{warmup.method} or its arguments are not what may be called")
    zeros = [math.prod(value.shape) for value in warmup.values.values() if isinstance(value, Zeros)]
    if sum(zeros) > MAX_ELEMENTS:
        raise FindingError(f"{sum(zeros):,} zeros")
    plain = {name for name, value in warmup.values.items() if not isinstance(value, Zeros | Numbers)}
    if warmup.method == "generate" and ("custom_generate" in warmup.values or "trust_remote_code" in warmup.values):
        raise FindingError("generate is told of code")
    if warmup.method == "generate" and any(isinstance(warmup.values[name], str) for name in plain):
        raise FindingError("generate is given a string")


def _fitting_digest(data: bytes, random: Any) -> bytes | None:
    """A changed manifest, mostly with the digest of what it lists now: no random change hits a sha256."""
    changed = mutators.change_json(data, random)
    if changed is None or random.random() < 0.2:
        return changed
    try:
        document = json.loads(changed)
        document["files"].sort(key=lambda file: file["path"])
        lines = "".join(f"{file['sha256']}  {file['path']}\n" for file in document["files"])
        document["set_digest"] = "sha256:" + hashlib.sha256(lines.encode()).hexdigest()
        return json.dumps(document, ensure_ascii=False).encode()
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        return changed


# --- models.lock, models.toml ------------------------------------------------------------------------------------

_ROOT = Path(__file__).parents[2]


def _toml_seeds(*names: str) -> Callable[[], list[bytes]]:
    return lambda: [(_ROOT / name).read_bytes() for name in names]


class _LockCheck:
    def __init__(self) -> None:
        self.path = new_folder() / "models.lock"

    def __call__(self, data: bytes) -> None:
        self.path.write_bytes(data)
        try:
            lock = Lock.read(self.path)
        except (ConfigError, DocumentError) as error:
            _speakable(error)
            return
        self.path.write_text(lock.text, encoding="utf-8")
        if Lock.read(self.path) != lock:
            raise FindingError("the lock's text reads back as another lock")


class _SpecCheck:
    def __init__(self) -> None:
        self.path = new_folder() / "models.toml"

    def __call__(self, data: bytes) -> None:
        self.path.write_bytes(data)
        try:
            spec = read_spec(self.path)
        except ConfigError as error:
            _speakable(error)
            return
        for model in spec.models:
            if not layout.MODEL_NAME.fullmatch(model.name):
                raise FindingError(f"{model.name!r} is no name of a model")
            spec.open(model)
            json.dumps(dict(model.options), allow_nan=False)
            _check_warmup(model.warmup)
            if model.warmup is not None:
                json.dumps(spell_warmup(model.warmup), allow_nan=False)


_BAKED = b"""
[models.caption.baked]
set_digest = "sha256:%(sha)s"
layer_digest = "sha256:%(sha)s"
converter = {prebake-build = "0.1.0"}
""" % {b"sha": SHA.encode()}

_SPEC = b"""
[models.net]
source = "path:."
class = "torch:package.module:factory"
timeout = 2.5
required = false
arguments = {width = 4, names = ["a", "b"], deep = {x = 1.5}}
[models.ocr]
source = "easyocr:ko+en"
quantize = false
warmup = "app.warm:read"
[models.gpt]
source = "path:."
[models.gpt.warmup]
method = "generate"
inputs = {input_ids = [[1, 2]], pixel_values = {shape = [1, 3], dtype = "float16"}, max_new_tokens = 1}
"""


TARGETS: dict[str, Callable[[], Target]] = {
    "header": lambda: Target(_header_seeds, _HeaderCheck(), mutators.change_header, 4096),
    "manifest": lambda: Target(_manifest_seeds, _ManifestCheck(), _fitting_digest, 8192),
    "lock": lambda: Target(
        lambda: [
            *(_toml_seeds("models.lock", "models.dummy.lock")()),
            (_ROOT / "models.lock").read_bytes().replace(b"[models.florence]", _BAKED + b"[models.florence]"),
        ],
        _LockCheck(), mutators.change_toml, 16_384,
    ),
    "models-toml": lambda: Target(
        lambda: [*_toml_seeds("models.toml", "models.dummy.toml", "tests/helpers/models.tiny.toml")(), _SPEC],
        _SpecCheck(), mutators.change_toml, 16_384,
    ),
}  # fmt: skip
"""The documents; `structure` and `object` are in modules of their own, which import torch."""
