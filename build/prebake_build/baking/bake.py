"""Bakes the models of `models.toml` into model folders, one after another: fetch, convert, prove, write.

The checkpoints are those in `models.lock`. A worker process does everything that touches a checkpoint's bytes; this
process handles the lock, the cache and the output folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prebake import errors
from prebake.baked import layout
from prebake.baked.manifest import Loading, Manifest, Source
from prebake.baked.warmup import spell_warmup
from prebake.documents.table import canonical_json
from prebake.errors import ConfigError, PrebakeError
from prebake_build.baking.environment import Environment, code_of, environment_of
from prebake_build.baking.freshness import why_other_code, why_stale
from prebake_build.baking.isolation import isolated
from prebake_build.baking.sandbox import landlock_version
from prebake_build.baking.worker import Job
from prebake_build.baking.writer import alone_in, check_space, new_folder, write_view
from prebake_build.cache.checkpoints import Cache
from prebake_build.cache.converted import Conversions
from prebake_build.declared.lock import Lock, resolution
from prebake_build.declared.spec import SHARD_SIZE, ModelSpec, Spec
from prebake_build.families.family import MARKS
from prebake_build.sources import Resolved, TellsOptions
from prebake_build.sources import Source as Upstream

logger = logging.getLogger(__name__)

Accept = Callable[[ModelSpec, Path], None]

FORMAT = 3
"""Version of a folder's contents; increased when the worker writes different contents for the same checkpoint."""


def bake(
    spec: Spec, names: Sequence[str], lock: Lock | None, cache: Cache, output: Path, *, force: bool,
    shard_size: int | None = None, accept: Accept = lambda model, folder: None,
    converted: Conversions | None = None,
) -> list[Path]:  # fmt: skip
    """Bake the named models (default: all) into `output/NAME` and return the folders, in the file's order.

    Beside the models from the hub stands a view of them in the layout of its cache (`prebake.baked.hub`).

    Without a lock, or if the lock marks a model as unresolved, the source is resolved now, with a warning. An existing
    folder of the same recipe, by the versions of now, is kept, unless `force`. `shard_size` is for models whose table
    has none: bytes of weights in a file at most. `accept` is called with each model and its finished folder, before
    that is in its place, and raises to refuse it. With `converted`, a model that was baked before is copied from there
    (unless `force`), and others are kept there. Raises PrebakeError; then models that were already baked stay, and so
    does the previous folder of the failing model.
    """
    if converted is not None and not converted.limit:
        converted = None
    if converted is not None and not landlock_version():
        logger.warning("converted models are neither taken from the build cache nor kept: this system lacks Landlock "
                       "(Linux 5.19), which keeps the process that reads a checkpoint from changing them")  # fmt: skip
        converted = None
    baking = _Baking(spec=spec, lock=lock, cache=cache, converted=converted, output=output, force=force, accept=accept)
    models = [
        dataclasses.replace(model, shard_size=model.shard_size or shard_size) for model in spec.select(names)
    ]  # fmt: skip
    with alone_in(output):
        try:
            return [baking.one(model, f"[{i}/{len(models)}] {model.name}") for i, model in enumerate(models, 1)]
        finally:
            write_view(output)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Baking:
    """What the models of one command share."""

    spec: Spec
    lock: Lock | None
    cache: Cache
    converted: Conversions | None
    output: Path
    force: bool
    accept: Accept

    def one(self, model: ModelSpec, say: str) -> Path:
        """Bake one model; messages begin with `say`."""
        source = self.spec.open(model)
        resolved = resolution(model, source, self.lock, self.cache, say)
        place, recipe = self.output / model.name, recipe_digest(model, resolved)
        stale = why_stale(place, recipe, model.shard_size or SHARD_SIZE)
        if stale is None and self.converted is not None and (code := code_of(model)):
            stale = why_other_code(place, recipe, code, self.converted.entries())
        if stale is None and not self.force:
            self.accept(model, place)
            logger.info("%s: up to date", say)
            return place
        if stale and not self.force:
            logger.info("%s: baking again: %s", say, stale)
        with new_folder(self.output, model.name) as folder:
            self._fill(folder, model, source, resolved, recipe, say)
        logger.info("%s: baked into %s", say, place)
        return place

    def _fill(
        self, folder: Path, model: ModelSpec, source: Upstream, resolved: Resolved, recipe: str, say: str
    ) -> None:
        """Fill the folder from the cache of converted models, or by the worker; the result is accepted."""

        def checkpoint() -> Path:
            logger.info("%s: fetching %s", say, model.source)
            return self.cache.checkpoint(source, resolved)

        known = environment_of(model, recipe) if self.converted else None
        if self.converted is None or known is None:
            self._convert(folder, model, source, resolved, recipe, checkpoint())
        elif not self._take(folder, known, recipe, say):
            # Fetched before the key is locked: a process that holds a key must not wait for another.
            files, waiting = checkpoint(), f"{say}: waiting for another build, which converts the same model"
            with self.converted.alone(known.key, waiting) as alone:
                if not (alone and self._take(folder, known, recipe, say, alone=True)):
                    self._convert(folder, model, source, resolved, recipe, files)
                    self.accept(model, folder)
                    if alone and known.covers(Manifest.read(folder).requires):
                        self.converted.keep(known.key, folder, known.versions)
                    return
        self.accept(model, folder)

    def _take(self, folder: Path, known: Environment, recipe: str, say: str, *, alone: bool = False) -> bool:
        if self.converted is None or self.force:
            return False
        if (size := self.converted.size_of(known.key, recipe)) is not None:
            check_space(folder, size)
        if not self.converted.take(known.key, folder, recipe, alone=alone):
            return False
        logger.info("%s: converted before: copied from the build cache, and every byte hashed", say)
        return True

    def _convert(
        self, folder: Path, model: ModelSpec, source: Upstream, resolved: Resolved, recipe: str, checkpoint: Path
    ) -> None:
        job = Job(
            name=model.name,
            family=model.family or _infer_family(model, checkpoint),
            class_=model.class_,
            dtype=model.dtype,
            options=_options(model, source),
            loading=_loading(model).to_dict(),
            source=Source(uri=model.source, revision=resolved.revision, licence=resolved.licence).to_dict(),
            recipe=recipe,
            checkpoint=str(checkpoint),
            folder=str(folder),
            shard_size=model.shard_size or SHARD_SIZE,
        )
        _work(job, self.converted)


def recipe_digest(model: ModelSpec, resolved: Resolved) -> str:
    """One digest of everything a baked folder depends on: checkpoint, declaration and the converter's version."""
    declared = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    options = dict(declared.pop("options"))
    declared["quantize"], declared["arguments"] = options.pop("quantize", True), options.pop("arguments", {})
    if options:  # without them, the digest of the versions that had these two keys alone
        declared["options"] = options
    warmup = declared.pop("warmup")
    if warmup is not None:  # without it, the digest of the versions that knew no warm-up
        declared["warmup"] = spell_warmup(warmup)
    if (declared.pop("shard_size") or SHARD_SIZE) != SHARD_SIZE:  # as above
        declared["shard_size"] = model.shard_size
    document = {
        "model": declared,
        "revision": resolved.revision,
        "licence": resolved.licence,
        "files": [file.to_dict() for file in resolved.files],
        "converter": version("prebake-build"),
        "format": FORMAT,
    }
    return "sha256:" + hashlib.sha256(canonical_json(document).encode()).hexdigest()


def _infer_family(model: ModelSpec, checkpoint: Path) -> str:
    for mark, family in MARKS.items():
        if (checkpoint / mark).is_file():
            return family
    if _is_of_timm(checkpoint / "config.json"):
        return "timm"
    if (checkpoint / "config.json").is_file() or (checkpoint / "adapter_config.json").is_file():
        return "transformers"
    raise ConfigError(
        f"models.{model.name}.class: cannot be inferred, since the checkpoint has no config.json: "
        'add class = "torch:package.module:factory"'
    )


def _is_of_timm(config: Path) -> bool:
    try:
        return "pretrained_cfg" in json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def _loading(model: ModelSpec) -> Loading:
    return Loading(retries=model.retries, timeout=model.timeout, required=model.required, warmup=model.warmup)


def _options(model: ModelSpec, source: Upstream) -> Mapping[str, Any]:
    """What the source tells about its files, and the family's own keys as declared."""
    told = source.options if isinstance(source, TellsOptions) else {}
    return {**told, **model.options}


def _work(job: Job, converted: Conversions | None = None) -> None:
    """Run the worker and raise the error that it returns. Its messages go directly to standard error.

    It can neither see nor write the converted models: they are what this process makes of it.
    """
    hidden = [converted.place] if converted is not None else []
    quiet = {} if sys.stderr.isatty() else {"TQDM_DISABLE": "1"}
    with isolated(Path(job.checkpoint), Path(job.folder), hidden, confined=bool(hidden)) as worker:
        done = subprocess.run(
            [sys.executable, "-m", "prebake_build.baking.worker", worker.plan],
            input=json.dumps(dataclasses.asdict(job)),
            stdout=subprocess.PIPE,
            env={
                **worker.environment,
                "HF_HUB_OFFLINE": "1",
                "PYTHONHASHSEED": "0",  # so that constructors iterate over sets in the same order
                "TOKENIZERS_PARALLELISM": "false",
                layout.ENV_DEFER: "0",
                **quiet,
            },
            text=True,
            check=False,
        )
    if done.returncode != 0 or not done.stdout:
        raise PrebakeError(
            f"models.{job.name}: the worker ended with {_ending(done.returncode)}; see its messages above"
        )
    answer: dict[str, str] = json.loads(done.stdout)
    if answer.get("error") == "OSError":
        raise OSError(int(answer["errno"]), answer["message"])
    if answer:
        kind = getattr(errors, answer["error"], PrebakeError)
        raise kind(answer["message"])


def _ending(code: int) -> str:
    if code == -9:
        return "signal 9 (killed, perhaps out of memory)"
    return f"signal {-code}" if code < 0 else f"exit code {code}"
