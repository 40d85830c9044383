"""`rules.toml`, typed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from typing import Any

from prebake.documents import toml
from prebake.documents.sizes import parse_size


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """The data of the rules; the file says what each means."""

    limits: Mapping[str, int]
    """Registry → bytes of its largest layer."""
    smallest: int
    mixed: int
    most_layers: int
    formats: Mapping[str, str]
    code_suffixes: tuple[str, ...]
    code_least: int
    dead: int
    gpu_paths: tuple[str, ...]
    gpu_variables: tuple[str, ...]
    hub: Mapping[str, str]
    caches: tuple[str, ...]
    secret_names: re.Pattern[str]
    harmless: re.Pattern[str]
    secret_files: tuple[str, ...]
    skipped: tuple[str, ...]
    secret_forms: Mapping[str, re.Pattern[str]]
    annotations: Mapping[str, tuple[str, ...]]


@cache
def rules() -> Rules:
    """The data that this package ships."""
    data: dict[str, Any] = toml.loads((files(__package__) / "rules.toml").read_text(encoding="utf-8"))
    weights, secrets = data["weights"], data["secrets"]
    return Rules(
        limits={name: parse_size(entry["limit"], name) for name, entry in data["registries"].items()},
        most_layers=data["layers"]["most"],
        smallest=parse_size(weights["smallest"], "weights.smallest"),
        mixed=parse_size(weights["mixed"], "weights.mixed"),
        formats=weights["formats"],
        code_suffixes=tuple(data["code"]["suffixes"]),
        code_least=data["code"]["least"],
        dead=parse_size(data["packages"]["dead"], "packages.dead"),
        gpu_paths=tuple(data["gpu"]["paths"]),
        gpu_variables=tuple(data["gpu"]["variables"]),
        hub=data["hub"],
        caches=tuple(data["caches"]["paths"]),
        secret_names=re.compile(secrets["names"], re.IGNORECASE),
        harmless=re.compile(secrets["harmless"], re.IGNORECASE),
        secret_files=tuple(secrets["files"]),
        skipped=tuple(secrets["skipped"]),
        secret_forms={name: re.compile(form) for name, form in secrets["forms"].items()},
        annotations={name: tuple(keys) for name, keys in data["annotations"].items()},
    )


def matches(path: str, patterns: tuple[str, ...]) -> bool:
    """Whether a path of an image matches one of the patterns, in which `*` also stands for `/`."""
    return any(fnmatchcase(f"/{path}", pattern) or fnmatchcase(path, pattern) for pattern in patterns)
