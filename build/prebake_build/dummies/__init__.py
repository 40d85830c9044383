"""Checkpoints of random weights in upstream's format, so that everything runs without network.

A dummy has upstream's file names, formats, keys, shapes and, at full size, its size in bytes to within 0.1 %; only the
values, vocabularies and words are generated. `write` handles all kinds. A dummy has the same bytes on every machine: it
depends only on the kind, the size, the seed, GENERATOR, and the keys and shapes of upstream's classes. So a lock of
dummies stays valid until transformers or EasyOCR change those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

GENERATOR = 1
"""Version; increased whenever the same dummy gets different bytes."""

KINDS = ("blip-base", "florence-2-base", "easyocr")
SIZES = ("full", "tiny")


@dataclass(frozen=True, kw_only=True, slots=True)
class Dummy:
    """One checkpoint that can be generated."""

    kind: str
    """One of KINDS."""
    size: str = "full"
    """One of SIZES: upstream's shapes, or a few MB of the same structure."""
    seed: int = 0
    """Not negative."""
    languages: tuple[str, ...] = ()
    """easyocr: the languages for `easyocr.Reader`."""

    @property
    def revision(self) -> str:
        """The values that determine its bytes: generator, seed and size."""
        return f"generator:{GENERATOR}+seed:{self.seed}+size:{self.size}"


def write(dummy: Dummy, folder: Path) -> None:
    """Write the checkpoint into `folder`, which exists and is empty.

    Raises ConfigError where EasyOCR does not read these languages together.
    """
    if dummy.kind == "blip-base":
        from prebake_build.dummies import blip

        blip.write(folder, dummy.size, dummy.seed)
    elif dummy.kind == "florence-2-base":
        from prebake_build.dummies import florence2

        florence2.write(folder, dummy.size, dummy.seed)
    else:
        from prebake_build.dummies import easyocr

        easyocr.write(folder, dummy.languages, dummy.seed)


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[Callable[[int], object]]:
    """A progress bar over `total` bytes on a terminal; nothing elsewhere, and for small dummies."""
    from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]

    hidden = True if total < 50_000_000 else None  # None: hidden where stderr is no terminal
    with tqdm(total=total, desc=what, unit="B", unit_scale=True, disable=hidden) as bar:
        yield bar.update
