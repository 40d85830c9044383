"""The process that handles a checkpoint's bytes: loads, converts, writes and proves one model, then exits.

`bake` starts it as `python -m prebake_build.baking.worker PLAN`, with a job as JSON on standard input and a result as
JSON on standard output. It first drops its privileges (`prebake_build.baking.sandbox`): if a checkpoint managed to run
code, that code would find no token, no network and no other process.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prebake import errors
from prebake.baked import layout
from prebake.baked.manifest import File, Loading, Manifest, Source, Weights
from prebake.baked.model import BakedModel
from prebake.cgroup import free_memory
from prebake.documents.table import Table
from prebake_build.baking import memory, sandbox
from prebake_build.baking.writer import check_space
from prebake_build.declared.spec import SHARD_SIZE
from prebake_build.files.atomic import write_text
from prebake_build.files.digest import file_of
from prebake_build.files.progress import telling

_NO_MEMORY = re.compile(r"(?:can't|cannot) allocate memory|bad_alloc|not enough memory", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """The parent's request; plain values, so it can be passed as JSON."""

    name: str
    family: str
    class_: str | None
    dtype: str
    options: Mapping[str, Any]
    loading: Mapping[str, Any]
    source: Mapping[str, Any]
    recipe: str
    checkpoint: str
    folder: str
    """An empty folder with the model's name."""
    shard_size: int = SHARD_SIZE
    """Bytes of weights in a file at most."""


def run(job: Job) -> None:
    """Bake one model into `job.folder`. Raises PrebakeError; then the folder's contents are unusable."""
    from prebake_build.baking.convert import parts_of, tensors_of
    from prebake_build.baking.ordinary import load_checkpoint
    from prebake_build.baking.prove import prove
    from prebake_build.baking.shards import split
    from prebake_build.baking.structures import add_structure
    from prebake_build.baking.tensor_files import Verified
    from prebake_build.families.family import Recipe
    from prebake_build.families.spill import spilling

    folder = Path(job.folder)
    say = f"{job.name}: "
    recipe = Recipe(name=job.name, family=job.family, class_=job.class_, dtype=job.dtype, options=job.options)
    _tell(say + "loading the checkpoint as its framework does")
    scarce = _is_scarce(Path(job.checkpoint), job.dtype)
    with spilling(folder if scarce else None):
        ordinary = load_checkpoint(recipe, Path(job.checkpoint))
    taken = tensors_of(ordinary.module, f"models.{job.name}")
    parts = parts_of(taken.state, ordinary.weights, f"models.{job.name}")
    shards, indexes = split(parts, job.shard_size, ordinary.whole)
    written = {file: tensors for found in shards.values() for file, tensors in found.items()}
    if taken.hidden:
        written[layout.BUFFERS] = taken.hidden
    texts = {**ordinary.texts, **indexes}
    check_space(folder, _planned(written.values(), Path(job.checkpoint), ordinary.keep, texts))
    size = sum(t.numel() * t.element_size() for t in taken.stored.values())
    _tell(say + f"writing {size:,} bytes of weights")
    verified = Verified()
    with telling(say + "writing", size):
        files = [_written(folder, path, tensors, verified, scarce) for path, tensors in written.items()]
    files += _small_files(folder, Path(job.checkpoint), ordinary.keep, texts)
    manifest = Manifest(
        name=job.name,
        family=job.family,
        class_=ordinary.class_,
        options=ordinary.options,
        loading=Loading.from_table(Table(job.loading, f"models.{job.name}: loading")),
        source=Source(**job.source),
        files=tuple(sorted(files, key=lambda file: file.path)),
        weights=_weights(taken, {file: ordinary.weights[path] for path, found in shards.items() for file in found}),
        converter={"prebake-build": version("prebake-build"), "recipe": job.recipe},
        requires={package: version(package).partition("+")[0] for package in ordinary.requires},
    )
    write_text(folder / layout.MANIFEST, manifest.text, new=True)
    _tell(say + "proving it against the checkpoint, bit by bit")
    with telling(say + "proving", 2 * size):  # mapped, and loaded by its own framework
        mapped = prove(ordinary.module, folder, ordinary.allow, verified)
    if mapped is not None:
        add_structure(mapped, BakedModel(folder, manifest))


def _is_scarce(checkpoint: Path, dtype: str) -> bool:
    """Whether the checkpoint, a second one in the declared dtype, and what is written may not fit into the memory."""
    free = free_memory()
    size = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
    return free is not None and size * (2 if dtype == "source" else 4) > free


def _planned(written: Iterable[Mapping[str, Any]], checkpoint: Path, keep: Sequence[str],
             texts: Mapping[str, str]) -> int:  # fmt: skip
    """Bytes that the model takes, without its manifest and structure, which are made of the written files."""
    from prebake_build.baking.tensor_files import file_size

    copied = sum((checkpoint / path).stat().st_size for path in set(keep) - texts.keys())
    return sum(map(file_size, written)) + copied + sum(len(text.encode()) for text in texts.values())


def _small_files(folder: Path, checkpoint: Path, keep: tuple[str, ...], texts: Mapping[str, str]) -> list[File]:
    for name in (layout.MANIFEST, layout.STRUCTURE):
        if name in keep:
            raise errors.SourceError(f"{checkpoint}: has a {name}, but baked models reserve that name")
    paths = sorted({*keep, *texts})
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        if path in texts:
            write_text(folder / path, texts[path], new=True)
        else:
            shutil.copyfile(checkpoint / path, folder / path)
    return [file_of(folder, path) for path in paths]


def _written(folder: Path, path: str, tensors: Mapping[str, Any], verified: Any, scarce: bool) -> File:
    from prebake_build.baking.tensor_files import write_tensors

    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    return replace(write_tensors(folder / path, tensors, verified, scarce=scarce), path=path)


def _weights(taken: Any, prefixes: Mapping[str, str]) -> Weights:
    from prebake.weights.tensors import DTYPE_NAMES

    dtypes: dict[str, int] = {}
    for tensor in taken.stored.values():
        name = DTYPE_NAMES[tensor.dtype]
        dtypes[name] = dtypes.get(name, 0) + 1
    return Weights(
        files=tuple(prefixes),
        buffers=layout.BUFFERS if taken.hidden else None,
        tensors=len(taken.stored),
        bytes=sum(tensor.numel() * tensor.element_size() for tensor in taken.stored.values()),
        dtypes=dtypes,
        aliases=taken.aliases,
        prefixes={path: prefix for path, prefix in prefixes.items() if prefix},
    )


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _limit_reached(error: BaseException, plan: sandbox.Plan | None) -> str:
    """What to add to the message if an allocation failed and the worker's memory is limited."""
    cause: BaseException | None = error
    while cause is not None and plan is not None and plan.memory is not None:
        refused = isinstance(cause, MemoryError) or getattr(cause, "errno", None) == errno.ENOMEM
        if refused or _NO_MEMORY.search(str(cause)):
            return (
                f" (the worker's memory is limited to {plan.memory:,} bytes: the available memory and room for mapped "
                f"files; {memory.ENV}=BYTES sets another limit, 0 means no limit)"
            )
        cause = cause.__cause__ or cause.__context__
    return ""


def main() -> int:
    """Read the job, run it, and print `{}` or the error's class and message as JSON."""
    plan = sandbox.Plan(**json.loads(sys.argv[1])) if len(sys.argv) > 1 else None
    if plan is not None:
        sandbox.enter(plan)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C also reaches the parent, which ends this process
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # output of libraries must not mix with the answer
    result: dict[str, str] = {}
    try:
        run(Job(**json.load(sys.stdin)))
    except errors.PrebakeError as error:
        result = {"error": type(error).__name__, "message": str(error) + _limit_reached(error, plan)}
    except OSError as error:
        text = (error.strerror or str(error)) + _limit_reached(error, plan)
        result = {"error": "OSError", "message": text, "errno": str(error.errno or 0)}
    except (MemoryError, RuntimeError) as error:
        if not (limited := _limit_reached(error, plan)):
            raise
        result = {"error": "PrebakeError", "message": f"{type(error).__name__}: {error}{limited}"}
    with answer:
        json.dump(result, answer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
