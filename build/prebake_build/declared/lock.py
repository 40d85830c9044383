"""`models.lock`: the exact revision and files of each model in `models.toml`.

The document is TOML in a canonical form: sorted, written by `Lock.text`. A model that could not be resolved stays in it
with the reason and with what is known.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import tomli_w

from prebake.baked import layout
from prebake.baked.manifest import File
from prebake.documents import toml
from prebake.documents.messages import nearest, quote, reason
from prebake.documents.table import Table, check_format
from prebake.errors import ConfigError, DocumentError, IntegrityError, NewerFormatError, SourceError
from prebake_build.declared.result import Baked
from prebake_build.declared.spec import ModelSpec, Spec
from prebake_build.files.atomic import write_text
from prebake_build.files.digest import unwritten
from prebake_build.sources import KnowsUpstream, Resolved, Source, Upstream

FORMAT = 1
_HEADER = """\
# Exact revisions, sizes and hashes for models.toml, written by `prebake lock`. Do not edit it; commit it.
# `prebake lock --check` reports whether upstream or models.toml has changed since.
"""
_KIND = re.compile(r"[a-z0-9]+:\S+")
_MD5 = re.compile(r"[0-9a-f]{32}")

_log = logging.getLogger(__name__)


class DamagedLockError(DocumentError):
    """The file is not a lock, or an invalid one: `what`; the message adds the way out."""

    def __init__(self, what: str, mend: str) -> None:
        super().__init__(f"{what}: {mend}")
        self.what = what


@dataclass(frozen=True, kw_only=True, slots=True)
class LockedModel:
    """One model of the lock: its resolution, or the reason why there is none."""

    source: str
    """The URI in `models.toml`."""
    resolved: Resolved | None = None
    unresolved: str | None = None
    """Why there is no `resolved`; exactly one of the two is set."""
    upstream: tuple[Upstream, ...] = ()
    """For an unresolved model: what is known about its files."""
    baked: Baked | None = None
    """For a resolved model: the result of its bake."""

    @classmethod
    def from_table(cls, table: Table) -> LockedModel:
        source = table.take("source", str)
        unresolved = table.maybe("unresolved", str)
        if unresolved is not None:
            upstream = table.items("upstream", _upstream) if "upstream" in set(table) else ()
            model = cls(source=source, unresolved=unresolved, upstream=upstream)
        else:
            baked = Baked.from_table(table.table("baked")) if "baked" in set(table) else None
            model = cls(source=source, resolved=_resolved(table), baked=baked)
        table.finish()
        return model

    def to_dict(self) -> dict[str, Any]:
        if self.resolved is None:
            upstream = [{"path": u.path, "url": u.url, "member": u.member, "md5": u.md5} for u in self.upstream]
            known = {"upstream": upstream} if upstream else {}
            return {"source": self.source, "unresolved": self.unresolved, **known}
        licence = {"licence": self.resolved.licence} if self.resolved.licence else {}
        return {
            "source": self.source,
            "revision": self.resolved.revision,
            **licence,
            "files": [file.to_dict() for file in self.resolved.files],
            **({"baked": self.baked.to_dict()} if self.baked else {}),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Lock:
    """The whole file. `Lock.read` reads and checks one; `text` is its canonical form."""

    models: Mapping[str, LockedModel]

    @classmethod
    def read(cls, path: Path) -> Lock:
        """Read a lock. Raises ConfigError if the file does not exist, DocumentError if it can't be read,
        DamagedLockError if it is malformed, and NewerFormatError; each message ends with the way out."""
        command = f"`{_command(path)}`"
        try:
            return cls._parse(path.read_text(encoding="utf-8"), path)
        except FileNotFoundError:
            raise ConfigError(f"{path}: there is no such file: run {command}") from None
        except OSError as error:
            raise DocumentError(f"{path}: cannot read this lock: {reason(error)}") from error
        except NewerFormatError:
            raise
        except (DocumentError, UnicodeDecodeError) as error:
            what = str(error) if isinstance(error, DocumentError) else f"{path}: this lock is not TOML: {error}"
            raise DamagedLockError(what, f"{command} writes it anew, or restore it from version control") from error

    @classmethod
    def _parse(cls, text: str, path: Path) -> Lock:
        try:
            table = Table(toml.loads(text), str(path))
        except (toml.TOMLDecodeError, RecursionError) as error:
            raise DocumentError(f"{path}: this lock is not TOML: {error}") from error
        check_format(table, FORMAT, "lock", f"install the prebake-build that wrote it, or remove the file and run "
                                            f"`{_command(path)}`")  # fmt: skip
        models = table.table("models", {})
        lock = cls(models={name: LockedModel.from_table(models.table(name)) for name in models})
        table.finish()
        for name in lock.models:
            if not layout.MODEL_NAME.fullmatch(name):
                raise models.fail(name, f"{quote(name)} is not a valid model name")
        return lock

    @property
    def text(self) -> str:
        """The lock as canonical TOML."""
        models = {name: self.models[name].to_dict() for name in sorted(self.models)}
        return _HEADER + "\n" + tomli_w.dumps({"format": FORMAT, "models": models})

    def write(self, path: Path) -> None:
        """Write it atomically. Raises PrebakeError if the disk is full, ConfigError for another failure."""
        try:
            write_text(path, self.text)
        except OSError as error:
            raise unwritten(path, error) from error

    def require(self, name: str, source: str) -> Resolved:
        """The locked resolution of this model of `models.toml`.

        Raises ConfigError if the model is not in the lock, is unresolved, or was locked for another source; each
        message ends with the command that fixes it.
        """
        model = self.models.get(name)
        mend = f"run `prebake lock {name}`"
        if model is None:
            raise ConfigError(f"models.lock: does not have {quote(name)}{nearest(name, list(self.models))}: {mend}")
        if model.source != source:
            raise ConfigError(
                f"models.lock: models.{name}.source: locked {quote(model.source)}, but models.toml has "
                f"{quote(source)}: {mend}"
            )
        if model.resolved is None:
            raise ConfigError(f"models.lock: models.{name} is unresolved: {model.unresolved}: {mend}")
        return model.resolved

    def is_open(self, name: str, source: str) -> bool:
        """Whether the lock marks this model of `models.toml` as unresolved."""
        model = self.models.get(name)
        return model is not None and model.source == source and model.resolved is None

    def with_baked(self, name: str, baked: Baked) -> Lock:
        """A copy of the lock with the result of the bake of a resolved model."""
        return Lock(models={**self.models, name: replace(self.models[name], baked=baked)})


def _command(path: Path) -> str:
    """What writes this lock."""
    models = path.with_suffix(".toml")
    named = models != Path("models.toml") and path.suffix == ".lock" and models.is_file()
    return f"prebake lock --models {models}" if named else f"prebake lock --lock {path}"


class Resolves(Protocol):
    """The part of the cache that `update` uses."""

    def resolve(self, source: Source) -> Resolved: ...


def resolution(model: ModelSpec, source: Source, lock: Lock | None, cache: Resolves, say: str) -> Resolved:
    """The model's resolution from the lock. Without a lock, or if the lock marks the model as unresolved, resolves it
    now with a warning, which begins with `say`. Raises ConfigError like `Lock.require`, and SourceError.
    """
    if lock is not None and not lock.is_open(model.name, model.source):
        return lock.require(model.name, model.source)
    _log.warning("%s: not locked: resolving %s now (prebake lock would pin it)", say, model.source)
    return cache.resolve(source)


def update(
    spec: Spec, names: Sequence[str], old: Lock | None, cache: Resolves, *, allow_unresolved: bool = False
) -> Lock:
    """Resolve the named models of `spec` (default: all) into a new lock; the others stay as they were.

    A model whose source and resolution are unchanged keeps its `baked` table. With `allow_unresolved`, a model that
    can't be resolved keeps its old resolution, or is written as unresolved. Without it, raises SourceError that lists
    every model that could not be resolved.
    """
    before = old.models if old else {}
    models = {model.name: before[model.name] for model in spec.models if model.name in before}
    failures: list[str] = []
    for model in spec.select(names):
        source = spec.open(model)
        last = before.get(model.name)
        last = last if last and last.source == model.source else None
        try:
            found = cache.resolve(source)
        except (SourceError, IntegrityError) as error:
            failures.append(f"models.{model.name}: {error}")
            if not (last and last.resolved):
                known = source.upstream() if isinstance(source, KnowsUpstream) else ()
                models[model.name] = LockedModel(source=model.source, unresolved=str(error), upstream=known)
        else:
            baked = last.baked if last and last.resolved == found else None
            models[model.name] = LockedModel(source=model.source, resolved=found, baked=baked)
    if failures and not allow_unresolved:
        raise SourceError(
            "\n".join(failures) + "\nThe lock was not changed. `prebake lock --allow-unresolved` keeps or marks "
            "what cannot be resolved, and writes the rest."
        )
    for failure in failures:
        _log.warning("%s", failure)
    return Lock(models=models)


def drift(old: Lock, new: Lock) -> list[str]:
    """The differences between two locks, one line each; empty if they agree.

    Of a model that is unresolved in `new`, only the source is compared: nothing else is known about it.
    """
    lines = [
        f"{name}: is in the lock, but not in models.toml" for name in sorted(old.models.keys() - new.models.keys())
    ]
    for name in sorted(new.models):
        if name in old.models:
            lines += _model_drift(name, old.models[name], new.models[name])
        else:
            lines.append(f"{name}: is in models.toml, but not in the lock")
    return lines


def _model_drift(name: str, old: LockedModel, new: LockedModel) -> list[str]:
    if old.source != new.source:
        return [f"{name}.source: locked {quote(old.source)}, now {quote(new.source)}"]
    was, now = old.resolved, new.resolved
    if now is None:
        return [] if old.upstream == new.upstream or was else [f"{name}.upstream: has changed"]
    if was is None:
        return [f"{name}: is unresolved in the lock, now {now.revision}"]
    lines = []
    if was.revision != now.revision:
        lines.append(f"{name}.revision: locked {was.revision}, now {now.revision}")
    if was.licence != now.licence:
        lines.append(f"{name}.licence: locked {was.licence or 'none'}, now {now.licence or 'none'}")
    before, after = ({file.path: file for file in resolved.files} for resolved in (was, now))
    for path in sorted(before.keys() | after.keys()):
        if before.get(path) != after.get(path):
            lines.append(f"{name}.files: {path}: locked {_spell(before.get(path))}, now {_spell(after.get(path))}")
    return lines


def _spell(file: File | None) -> str:
    return f"{file.size:,} bytes sha256:{file.sha256}" if file else "none"


def _resolved(table: Table) -> Resolved:
    resolved = Resolved(
        revision=table.take("revision", str),
        files=table.items("files", File.from_table),
        licence=table.maybe("licence", str),
    )
    if not _KIND.fullmatch(resolved.revision):
        raise table.fail("revision", f'{quote(resolved.revision)} is not of the form "commit:…" or "sha256:…"')
    paths = [file.path for file in resolved.files]
    if not paths or paths != sorted(set(paths)):
        raise table.fail("files", "expected at least one, each path once, sorted")
    return resolved


def _upstream(table: Table) -> Upstream:
    known = Upstream(**{key: table.take(key, str) for key in ("path", "url", "member", "md5")})
    for key, path in (("path", known.path), ("member", known.member)):
        if not layout.is_inside(path):
            raise table.fail(key, f"{quote(path)} leaves the checkpoint")
    if not _MD5.fullmatch(known.md5):
        raise table.fail("md5", f"{quote(known.md5)} is not 32 hexadecimal digits")
    table.finish()
    return known
