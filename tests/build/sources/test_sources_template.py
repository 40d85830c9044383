"""The template in docs/sources.md is a source that works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from helpers import ROOT
from helpers.distributions import Distributions
from prebake.documents import toml
from prebake.errors import ConfigError, SourceError
from prebake_build.cache.checkpoints import Cache
from prebake_build.sources import open_source

DOCUMENT = (ROOT / "docs" / "sources.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
    return str(found)


@pytest.fixture
def shelves(distributions: Distributions, tmp_path: Path) -> Path:
    """The folder of models.toml, with one shelf."""
    entries = toml.loads(block("toml"))["project"]["entry-points"]
    distributions.add("acme-shelf", entries, {"acme_shelf.py": block("python")})
    (tmp_path / "shelves" / "tiny" / "sub").mkdir(parents=True)
    (tmp_path / "shelves" / "tiny" / "sub" / "w.pth").write_bytes(b"weights")
    return tmp_path


def test_it_is_resolved_and_fetched(shelves: Path) -> None:
    source = open_source("shelf:tiny", base=shelves, where="models.toml: models.m.source")
    with Cache() as cache:
        folder = cache.checkpoint(source, cache.resolve(source))
        assert (folder / "sub" / "w.pth").read_bytes() == b"weights"


def test_its_messages_name_the_place(shelves: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        open_source("shelf:a/b", base=shelves, where="models.toml: models.m.source")
    assert str(refused.value) == 'models.toml: models.m.source: "shelf:a/b" is not of the form "shelf:NAME"'
    with pytest.raises(SourceError) as missing:
        open_source("shelf:none", base=shelves, where="models.toml").resolve()
    assert str(missing.value) == "shelf:none: there is no such shelf"
