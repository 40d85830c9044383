"""`dummy:blip-base?size=tiny&seed=7`: a checkpoint of random weights, generated locally without network.

Kinds: `blip-base`, `florence-2-base`, and `easyocr-` with languages joined by `+` (`easyocr-ko+en`). Options:
`size=full` (upstream's shapes, the default) or `size=tiny`; `seed`, an integer, by default 0.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prebake.documents.messages import nearest, quote
from prebake.errors import ConfigError, SourceError
from prebake_build.dummies import KINDS, SIZES, Dummy, write
from prebake_build.files import digest
from prebake_build.sources import Resolved

_OPTIONS = ("size", "seed")
_EASYOCR = "easyocr-"
_SEED = re.compile(r"[0-9]{1,9}", re.ASCII)
_LANGUAGES = re.compile(r"[a-z_]+(?:\+[a-z_]+)*", re.ASCII)


@dataclass(frozen=True, kw_only=True, slots=True)
class DummySource:
    """One dummy checkpoint."""

    uri: str
    dummy: Dummy

    @classmethod
    def parse(cls, uri: str, rest: str, where: str, base: Path = Path()) -> DummySource:
        """Raises ConfigError that begins with `where` for an unknown kind, option or value."""
        name, mark, query = rest.partition("?")
        options = _options(f"{where}: {quote(uri)}", query) if mark else {}
        kind, languages = _kind(f"{where}: {quote(uri)}", name)
        size, seed = options.get("size", "full"), options.get("seed", "0")
        if size not in SIZES:
            raise ConfigError(f"{where}: {quote(uri)}: size {quote(size)} is not one of "
                              f"{', '.join(SIZES)}{nearest(size, SIZES)}")  # fmt: skip
        if not _SEED.fullmatch(seed):
            raise ConfigError(f"{where}: {quote(uri)}: seed {quote(seed)} is not an integer of up to 9 digits")
        return cls(uri=uri, dummy=Dummy(kind=kind, size=size, seed=int(seed), languages=languages))

    @property
    def options(self) -> dict[str, Any]:
        """The languages of a dummy of EasyOCR."""
        return {"languages": list(self.dummy.languages)} if self.dummy.languages else {}

    def resolve(self) -> Resolved:
        """Generate, hash and discard. Raises ConfigError if EasyOCR does not know the languages."""
        with tempfile.TemporaryDirectory(prefix="prebake-") as folder:
            return self.resolve_into(Path(folder))

    def resolve_into(self, folder: Path) -> Resolved:
        """Generate the checkpoint in `folder`. Raises like `resolve`."""
        write(self.dummy, folder)
        return Resolved(revision=self.dummy.revision, files=digest.files_of(folder))

    def fetch(self, resolved: Resolved, folder: Path) -> None:
        """Generate it again. Raises SourceError if another generator, seed or size was locked."""
        if resolved.revision != self.dummy.revision:
            raise SourceError(
                f"{self.uri}: {resolved.revision} was locked, but this Prebake generates {self.dummy.revision}: "
                "run `prebake lock`, or use the Prebake version that wrote the lock"
            )
        write(self.dummy, folder)


def _kind(begin: str, name: str) -> tuple[str, tuple[str, ...]]:
    if name.startswith(_EASYOCR):
        rest = name.removeprefix(_EASYOCR)
        languages = tuple(rest.split("+"))
        if not _LANGUAGES.fullmatch(rest) or len(set(languages)) != len(languages):
            raise ConfigError(f'{begin}: expected languages as in "easyocr-ko+en", each once, found {quote(rest)}')
        return "easyocr", languages
    known = tuple("easyocr-ko+en" if kind == "easyocr" else kind for kind in KINDS)
    if name not in known:
        raise ConfigError(f"{begin}: {quote(name)} is not one of {', '.join(known)}{nearest(name, known)}")
    return name, ()


def _options(begin: str, query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for option in query.split("&"):
        key, _, value = option.partition("=")
        if key not in _OPTIONS:
            raise ConfigError(f"{begin}: unknown option {quote(key)}{nearest(key, _OPTIONS)}")
        if key in options:
            raise ConfigError(f"{begin}: option {key} is given twice")
        options[key] = value
    return options
