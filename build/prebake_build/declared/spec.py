"""`models.toml`: the declared models, typed.

All issues of the file are collected and raised together, each with its path in the document.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from prebake.baked import layout
from prebake.baked.warmup import Inputs, Warmup, read_warmup
from prebake.documents import toml
from prebake.documents.messages import nearest, quote, reason
from prebake.documents.sizes import parse_size
from prebake.documents.table import Table
from prebake.errors import ConfigError, UnknownModelError
from prebake.families.family import GROUP, family_names
from prebake_build.families.family import DTYPES, BuildFamily, build_family, families_with, wanted_of
from prebake_build.sources import ChoosesFiles, Source, open_source

T = TypeVar("T")

MAX_RETRIES = 10
ENV_SHARD_SIZE = "PREBAKE_SHARD_SIZE"
SHARD_SIZE = 2 * 10**9
"""Bytes of weights in a file at most, where neither `models.toml` nor an option says so: parts that are pulled beside
each other, below what any registry takes as a layer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """One table of `models.toml`."""

    name: str
    """The name of the table: `layout.MODEL_NAME`."""
    source: str
    """The URI as written."""
    family: str | None = None
    """An installed family; None if it is inferred from `config.json`."""
    class_: str | None = None
    """The part after the family: a class of transformers, `Reader`, or `package.module:factory`."""
    dtype: str = "source"
    """One of DTYPES."""
    retries: int = 0
    """How often a failed load is retried, 0 to 10."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The family's own keys (`BuildFamily.options`): `quantize` of easyocr, `arguments` of torch."""
    timeout: float | None = None
    """Seconds after which a waiting caller gets an error."""
    required: bool = True
    """Whether readiness requires this model to be loaded."""
    warmup: Warmup | None = None
    """The warm-up: `module:function` of the application, or inputs as data."""
    shard_size: int | None = None
    """Bytes of weights in a file at most; None for the default."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spec:
    """The whole file. `read_spec` reads and checks one."""

    path: Path
    models: tuple[ModelSpec, ...]
    """In the file's order."""

    def select(self, names: Sequence[str]) -> tuple[ModelSpec, ...]:
        """The models with these names, in the file's order; all models if no name is given.

        Raises UnknownModelError that lists the known names.
        """
        known = [model.name for model in self.models]
        for name in names:
            if name not in known:
                raise UnknownModelError(
                    f"{self.path}: there is no model {quote(name)} (it has {', '.join(known)}){nearest(name, known)}"
                )
        return tuple(model for model in self.models if not names or model.name in names)

    def open(self, model: ModelSpec) -> Source:
        """The source of one of the models; paths are relative to the folder of `models.toml`."""
        where = f"{self.path}: models.{model.name}"
        source = open_source(model.source, base=self.path.parent, where=f"{where}.source")
        if isinstance(source, ChoosesFiles):
            return source.wanting(wanted_of(model.family, model.options, f"{where}.class"))
        return source


def read_spec(path: Path) -> Spec:
    """Read `models.toml`.

    Raises ConfigError that lists every issue, one per line, as `FILE: models.NAME.key: what is wrong`.
    """
    try:
        data = toml.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: there is no such file: `prebake scan -- COMMAND` writes one, or name another with --models"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot read it: {reason(error)}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8: {error.reason} at byte {error.start}") from error
    except toml.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from error
    issues = _Issues()
    top = Table(data, str(path), ConfigError)
    tables = issues.collect(lambda: top.table("models"), None)
    issues.collect(top.finish, None)
    if tables is not None and not list(tables):
        issues.append(f"{tables.where}: is empty (expected a table [models.NAME] for each model)")
    names = list(tables) if tables is not None else []
    models = [_read_model(tables, name, path.parent, issues) for name in names if tables is not None]
    if issues:
        raise ConfigError("\n".join(issues))
    return Spec(path=path, models=tuple(model for model in models if model is not None))


class _Issues(list[str]):
    """The messages so far. If a function given to `collect` fails, reading continues with a default."""

    def collect(self, read: Callable[[], T], otherwise: T) -> T:
        try:
            return read()
        except ConfigError as error:
            self.append(str(error))
            return otherwise


def _read_model(models: Table, name: str, base: Path, issues: _Issues) -> ModelSpec | None:
    table = issues.collect(lambda: models.table(name), None)
    if table is None:
        return None
    if not layout.MODEL_NAME.fullmatch(name):
        issues.append(
            f"{models.where}: {quote(name)} is not a valid model name: use lower-case letters, digits, '.', '_' and "
            "'-', at most 64, with a letter or digit at both ends"
        )
    source = issues.collect(lambda: _source(table, base), "")
    nothing: tuple[str | None, str | None] = (None, None)
    family, class_ = issues.collect(lambda: _class(table, source), nothing)
    spec = ModelSpec(
        name=name,
        source=source,
        family=family,
        class_=class_,
        dtype=issues.collect(lambda: table.one_of("dtype", DTYPES, "source"), "source"),
        retries=issues.collect(lambda: _retries(table), 0),
        options=issues.collect(lambda: _options(table, family), {}),
        timeout=issues.collect(lambda: _timeout(table), None),
        required=issues.collect(lambda: table.take("required", bool, True), True),
        warmup=issues.collect(lambda: read_warmup(table), None),
        shard_size=issues.collect(lambda: _shard_size(table), None),
    )
    misfits = _misfits(table, spec)
    issues.collect(table.finish, None)
    issues.extend(misfits)
    return spec


def _source(table: Table, base: Path) -> str:
    uri = table.take("source", str)
    open_source(uri, base=base, where=table.at("source"))
    return uri


def _class(table: Table, source: str) -> tuple[str | None, str | None]:
    """Family and class; for an EasyOCR source, the class is optional."""
    reads_easyocr = source.startswith(("easyocr:", "dummy:easyocr"))
    value = table.maybe("class", str)
    if value is None:
        return ("easyocr", None) if reads_easyocr else (None, None)
    family, _, class_ = value.partition(":")
    if family not in (known := family_names()):
        hint = nearest(family, known) or (
            f': did you mean "transformers:{family}"?'
            if re.match("[A-Z]", family)
            else f" (others come with a package that has an entry point of the group {GROUP})"
        )
        raise table.fail("class", f"{quote(family)} is not a known family (expected one of {', '.join(known)}){hint}")
    build = _build(table, family)
    if not build.pattern.fullmatch(class_):
        raise table.fail("class", f"{quote(value)} is not of the form {quote(build.example)}")
    if source and reads_easyocr != (family == "easyocr"):
        raise table.fail("class", f"the family {family} cannot read the source {quote(source)}")
    return family, class_


def _build(table: Table, family: str) -> BuildFamily:
    return build_family(family, table.at("class"))


def _options(table: Table, family: str | None) -> Mapping[str, Any]:
    return _build(table, family).options(table) if family else {}


def _retries(table: Table) -> int:
    retries = table.take("retries", int, 0)
    if not 0 <= retries <= MAX_RETRIES:
        raise table.fail("retries", f"{retries} is not between 0 and {MAX_RETRIES}")
    return retries


def _timeout(table: Table) -> float | None:
    timeout = table.maybe("timeout", float)
    if timeout is not None and not (math.isfinite(timeout) and timeout > 0):
        raise table.fail("timeout", f"{timeout:g} is not a number of seconds above 0")
    return timeout


def _shard_size(table: Table) -> int | None:
    text = table.maybe("shard_size", str)
    return None if text is None else parse_shard_size(text, table.at("shard_size"))


def parse_shard_size(text: str, where: str) -> int:
    """A size above 0, in bytes. Raises ConfigError whose message begins with `where`."""
    size = parse_size(text, where)
    if not size:
        raise ConfigError(f'{where}: 0 bytes hold no weights (expected a size, such as "2 GB")')
    return size


def _misfits(table: Table, spec: ModelSpec) -> list[str]:
    """Issues with keys that do not apply to this model's family."""
    found = []
    family = _build(table, spec.family) if spec.family else None
    of = f"this model's family is {spec.family}" if spec.family else 'set `class = "FAMILY:…"` if it is'
    for key in table:
        if key not in (family.keys if family else ()) and (of_others := families_with(key)):
            table.raw(key)
            found.append(f"{table.at(key)}: is only for the family {' or '.join(of_others)} ({of})")
    if family is None:
        return found
    if family.no_inputs and isinstance(spec.warmup, Inputs):
        found.append(
            f"{table.at('warmup')}: the family {spec.family} {family.no_inputs}: write a function, "
            'warmup = "package.module:function"'
        )
    if spec.dtype not in family.dtypes:
        fits = " or ".join(name for name in family.dtypes if name != "source")
        found.append(
            f"{table.at('dtype')}: {quote(spec.dtype)} does not fit the family {spec.family} (it is {fits or 'source'})"
        )
    return found
