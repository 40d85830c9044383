"""EasyOCR's own tables: which zips contain the detector, and the recogniser for given languages.

They are read from the installed EasyOCR, so a new EasyOCR version brings its own models.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import runpy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prebake.documents.messages import nearest, quote
from prebake.errors import ConfigError

# In the order of Reader.__init__: single languages before scripts.
_OWN = {
    "th": "thai_g1",
    "ch_tra": "zh_tra_g1",
    "ch_sim": "zh_sim_g2",
    "ja": "japanese_g2",
    "ko": "korean_g2",
    "ta": "tamil_g1",
    "te": "telugu_g2",
    "kn": "kannada_g2",
}


_SCRIPTS = {
    "bengali_lang_list": "bengali_g1",
    "arabic_lang_list": "arabic_g1",
    "devanagari_lang_list": "devanagari_g1",
    "cyrillic_lang_list": "cyrillic_g2",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Archive:
    """One zip upstream."""

    name: str
    """`korean_g2.zip`"""
    url: str
    member: str
    """The pickle inside: `korean_g2.pth`."""
    md5: str
    """The member's md5 from EasyOCR's table."""


def archive_members(languages: Sequence[str], where: str = "easyocr") -> dict[str, Archive]:
    """The zips for these languages by name, sorted: one for the detector and one for the recogniser.

    Raises ConfigError that begins with `where` if EasyOCR is not installed or does not know the languages.
    """
    tables = _tables()
    key = recognizer_of(languages, where)
    recognizer = next(models[key] for models in tables["recognition_models"].values() if key in models)
    archives = [_archive(entry) for entry in (tables["detection_models"]["craft"], recognizer)]
    return {archive.name: archive for archive in sorted(archives, key=lambda archive: archive.name)}


def recognizer_of(languages: Sequence[str], where: str = "easyocr") -> str:
    """The recogniser that `easyocr.Reader(languages)` takes: a key of EasyOCR's `recognition_models`.

    Mirrors Reader.__init__ of EasyOCR 1.7.2, refusals included. Raises ConfigError, begun with `where`.
    """
    tables, known = _tables(), _languages()
    for language in languages:
        if language not in known:
            raise ConfigError(
                f"{where}: EasyOCR knows no language {quote(language)} "
                f"(expected some of {', '.join(known)}){nearest(language, known)}"
            )
    if not languages:
        raise ConfigError(f"{where}: EasyOCR needs at least one language")
    if list(languages) == ["en"]:
        return "english_g2"
    for language, key in _OWN.items():
        if language in languages:
            _check_together(languages, [language, "en"], key, where)
            return key
    for script, key in _SCRIPTS.items():
        if set(languages) & set(tables[script]):
            _check_together(languages, [*tables[script], "en"], key, where)
            return key
    return "latin_g2"


def _check_together(languages: Sequence[str], allowed: list[str], key: str, where: str) -> None:
    others = [language for language in languages if language not in allowed]
    if others:
        raise ConfigError(
            f"{where}: EasyOCR's {key} reads only {', '.join(allowed)}, not {', '.join(others)}: "
            "make a second model for those"
        )


def _archive(entry: Mapping[str, str]) -> Archive:
    url = entry["url"]
    return Archive(name=url.rpartition("/")[2], url=url, member=entry["filename"], md5=entry["md5sum"])


def _languages() -> list[str]:
    """Those that a Reader can be made for: EasyOCR 1.7.2 lists `bgc` and has no characters for it."""
    tables = _tables()
    characters = Path(tables["BASE_PATH"]) / "character"
    return sorted(name for name in tables["all_lang_list"] if (characters / f"{name}_char.txt").is_file())


@functools.cache
def _tables() -> dict[str, Any]:
    """EasyOCR's `config.py`, run by its path: `import easyocr.config` would import torch and OpenCV first."""
    spec = importlib.util.find_spec("easyocr")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("EasyOCR is not installed, and its tables say which files a model needs: pip install easyocr")
    before = dict(os.environ)
    try:
        return runpy.run_path(str(Path(spec.submodule_search_locations[0]) / "config.py"))
    finally:
        # It sets LRU_CACHE_CAPACITY for the process.
        if os.environ != before:
            os.environ.clear()
            os.environ.update(before)
