"""`dummy:` names what is made, and makes it again as it was locked or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from prebake.errors import ConfigError, SourceError
from prebake_build.dummies import GENERATOR, Dummy, write
from prebake_build.files import digest
from prebake_build.sources import Resolved, ResolvesByFetching, open_source
from prebake_build.sources.dummy import DummySource


class TestSource:
    @pytest.mark.parametrize(
        ("rest", "dummy"),
        [
            ("blip-base", Dummy(kind="blip-base")),
            ("florence-2-base?size=tiny", Dummy(kind="florence-2-base", size="tiny")),
            ("blip-base?seed=7&size=tiny", Dummy(kind="blip-base", size="tiny", seed=7)),
            ("easyocr-ko+en", Dummy(kind="easyocr", languages=("ko", "en"))),
            ("easyocr-ch_sim?seed=1", Dummy(kind="easyocr", seed=1, languages=("ch_sim",))),
        ],
    )
    def test_a_uri_says_what_is_made(self, rest: str, dummy: Dummy) -> None:
        source = open_source(f"dummy:{rest}", base=Path(), where="models.toml: models.a.source")
        assert isinstance(source, DummySource)
        assert source.dummy == dummy

    @pytest.mark.parametrize(
        ("rest", "message"),
        [
            ("blip-bse", '"blip-bse" is not one of blip-base, florence-2-base, easyocr-ko+en: '
             'did you mean "blip-base"?'),
            ("", '"" is not one of blip-base, florence-2-base, easyocr-ko+en'),
            ("easyocr", '"easyocr" is not one of blip-base, florence-2-base, easyocr-ko+en: '
             'did you mean "easyocr-ko+en"?'),
            ("blip-base?sise=tiny", 'unknown option "sise": did you mean "size"?'),
            ("blip-base?", 'unknown option ""'),
            ("blip-base?size=small", 'size "small" is not one of full, tiny'),
            ("blip-base?seed=-1", 'seed "-1" is not an integer of up to 9 digits'),
            ("blip-base?seed=1&seed=2", "option seed is given twice"),
            ("easyocr-ko+ko", 'expected languages as in "easyocr-ko+en", each once, found "ko+ko"'),
        ],
    )  # fmt: skip
    def test_what_is_not_known_is_refused_with_the_nearest_known(self, rest: str, message: str) -> None:
        with pytest.raises(ConfigError) as caught:
            open_source(f"dummy:{rest}", base=Path(), where="models.toml: models.a.source")
        assert str(caught.value) == f'models.toml: models.a.source: "dummy:{rest}": {message}'

    def test_resolving_keeps_what_it_made_and_fetching_makes_it_again(self, tmp_path: Path) -> None:
        source = DummySource.parse("dummy:blip-base?size=tiny", "blip-base?size=tiny", "here")
        assert isinstance(source, ResolvesByFetching)
        made, again = tmp_path / "made", tmp_path / "again"
        made.mkdir()
        again.mkdir()
        resolved = source.resolve_into(made)
        assert resolved.revision == f"generator:{GENERATOR}+seed:0+size:tiny"
        source.fetch(resolved, again)
        digest.check_files(made, resolved.files)
        digest.check_files(again, resolved.files)
        assert source.resolve() == resolved

    def test_another_generator_is_not_made_up_for(self, tmp_path: Path) -> None:
        source = DummySource.parse("dummy:blip-base", "blip-base", "here")
        with pytest.raises(SourceError) as caught:
            source.fetch(Resolved(revision="generator:0+seed:0+size:full", files=()), tmp_path)
        assert str(caught.value) == (
            "dummy:blip-base: generator:0+seed:0+size:full was locked, but this Prebake generates "
            f"generator:{GENERATOR}+seed:0+size:full: run `prebake lock`, or use the Prebake version that wrote the "
            "lock"
        )

    def test_languages_that_easyocr_does_not_know_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="xx"):
            write(Dummy(kind="easyocr", languages=("xx",)), tmp_path)
