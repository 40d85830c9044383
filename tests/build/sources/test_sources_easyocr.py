"""`easyocr:` against a local mirror, and EasyOCR's choice of models against EasyOCR itself."""

from __future__ import annotations

import functools
import hashlib
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.archive_files import make_zip
from helpers.hub_server import FileServer
from prebake.baked.manifest import set_digest
from prebake.errors import ConfigError, IntegrityError, SourceError
from prebake_build.cache.checkpoints import Cache
from prebake_build.sources.archives import extract
from prebake_build.sources.easyocr import EasyOcrSource
from prebake_build.upstream import easyocr as tables_of
from prebake_build.upstream.easyocr import archive_members, recognizer_of

PICKLES = {"craft_mlt_25k": b"detector" * 100, "korean_g2": b"recogniser" * 100}


def source(rest: str = "ko+en") -> EasyOcrSource:
    return EasyOcrSource.parse(f"easyocr:{rest}", rest, "models.toml: models.ocr.source")


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """Zips of a few bytes, and their sums in EasyOCR's table."""
    tables = tables_of._tables()
    for entry, name in ((tables["detection_models"]["craft"], "craft_mlt_25k"),
                        (tables["recognition_models"]["gen2"]["korean_g2"], "korean_g2")):  # fmt: skip
        monkeypatch.setitem(entry, "md5sum", hashlib.md5(PICKLES[name]).hexdigest())
    zips = {f"easyocr/{name}.zip": make_zip({f"{name}.pth": body}) for name, body in PICKLES.items()}
    with FileServer(zips) as server:
        monkeypatch.setenv("EASYOCR_MIRROR", f"{server.url}/easyocr/")
        yield server


# --- the choice of models ----------------------------------------------------------------------------------------


@functools.cache
def _reader_class() -> Any:
    from prebake.families.compat import torchvision_operators

    torchvision_operators()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import easyocr as upstream

    return upstream.Reader


def of_the_reader(languages: list[str], folder: Path) -> str:
    """The script of the model that `easyocr.Reader` takes; "refused" where it takes none."""
    try:
        reader = _reader_class()(
            languages, gpu=False, detector=False, recognizer=False, verbose=False, download_enabled=False,
            model_storage_directory=str(folder), user_network_directory=str(folder),
        )  # fmt: skip
    except (ValueError, FileNotFoundError):
        return "refused"
    finally:
        sys.path[:] = [entry for entry in sys.path if entry != str(folder)]
    return f"{reader.model_lang} {len(reader.character)}"


def of_ours(languages: list[str]) -> str:
    try:
        key = recognizer_of(languages)
    except ConfigError:
        return "refused"
    model = next(models[key] for models in tables_of._tables()["recognition_models"].values() if key in models)
    return f"{model['model_script']} {len(model['characters'])}"


LANGUAGES = sorted(tables_of._tables()["all_lang_list"])


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("easyocr")


def test_every_language_alone_and_with_english_takes_the_readers_model(storage: Path) -> None:
    for language in LANGUAGES:
        for languages in ([language], [language, "en"], ["en", language]):
            if len(set(languages)) == len(languages):
                assert of_ours(languages) == of_the_reader(languages, storage), languages


@settings(max_examples=150)
@given(languages=st.lists(st.sampled_from([*LANGUAGES, "xx"]), min_size=1, max_size=4, unique=True))
def test_any_languages_take_the_readers_model_or_are_refused_as_it_refuses(storage: Path, languages: list[str]) -> None:
    assert of_ours(languages) == of_the_reader(languages, storage)


def test_korean_and_english_are_craft_and_korean_g2() -> None:
    assert archive_members(["ko", "en"]) == {
        "craft_mlt_25k.zip": tables_of.Archive(
            name="craft_mlt_25k.zip",
            url="https://github.com/JaidedAI/EasyOCR/releases/download/pre-v1.1.6/craft_mlt_25k.zip",
            member="craft_mlt_25k.pth",
            md5="2f8227d2def4037cdb3b34389dcf9ec1",
        ),
        "korean_g2.zip": tables_of.Archive(
            name="korean_g2.zip",
            url="https://github.com/JaidedAI/EasyOCR/releases/download/v1.3/korean_g2.zip",
            member="korean_g2.pth",
            md5="befecf7b1ca2fffb5af814a51443682d",
        ),
    }


def test_reading_the_tables_imports_neither_easyocr_nor_torch_nor_changes_the_environment() -> None:
    code = (
        "import os, sys; before = dict(os.environ)\n"
        "from prebake_build.sources.easyocr import archive_members\n"
        "archive_members(['ko', 'en'])\n"
        "assert dict(os.environ) == before\n"
        "print(sorted({'easyocr', 'torch', 'cv2', 'numpy'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


@pytest.mark.parametrize("rest", ["", "ko,en", "ko+", "+ko", "ko+ko", "KO", "ko en"])
def test_a_uri_that_is_no_list_of_languages_is_refused(rest: str) -> None:
    with pytest.raises(ConfigError) as error:
        source(rest)
    assert str(error.value) == (
        f'models.toml: models.ocr.source: "easyocr:{rest}" is not of the form "easyocr:ko+en", each language once'
    )


def test_an_unknown_language_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError) as error:
        source("ch_simp")
    assert str(error.value) == (
        'models.toml: models.ocr.source: EasyOCR knows no language "ch_simp" '
        f'(expected some of {", ".join(tables_of._languages())}): did you mean "ch_sim"?'
    )


def test_languages_that_no_model_reads_together_are_refused() -> None:
    with pytest.raises(ConfigError) as error:
        source("ko+ja+fr")
    assert str(error.value) == (
        "models.toml: models.ocr.source: EasyOCR's japanese_g2 reads only ja, en, not ko, fr: "
        "make a second model for those"
    )


def test_models_toml_is_readable_without_easyocr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    tables_of._tables.cache_clear()
    try:
        with pytest.raises(ConfigError) as error:
            source().resolve()
    finally:
        monkeypatch.undo()
        tables_of._tables.cache_clear()
    assert str(error.value) == (
        "EasyOCR is not installed, and its tables say which files a model needs: pip install easyocr"
    )


# --- fetching ----------------------------------------------------------------------------------------------------


def test_the_checkpoint_is_upstreams_zips_and_fetched_once(mirror: FileServer) -> None:
    with Cache() as cache:
        resolved = cache.resolve(source())
        folder = cache.checkpoint(source(), resolved, verify=True)
    assert [file.path for file in resolved.files] == ["craft_mlt_25k.zip", "korean_g2.zip"]
    assert resolved.revision == set_digest(resolved.files)
    assert {f"easyocr/{path.name}": path.read_bytes() for path in folder.iterdir()} == mirror.files
    assert sorted(request.path for request in mirror.requests) == [
        "/easyocr/craft_mlt_25k.zip",
        "/easyocr/korean_g2.zip",
    ]


def test_locked_zips_are_fetched_into_an_empty_cache(mirror: FileServer) -> None:
    resolved = source().resolve()
    with Cache() as cache:
        assert len(list(cache.checkpoint(source(), resolved).iterdir())) == 2


def test_a_pickle_that_is_not_the_tables_is_refused(mirror: FileServer) -> None:
    mirror.files["easyocr/korean_g2.zip"] = make_zip({"korean_g2.pth": b"other"})
    with Cache() as cache, pytest.raises(IntegrityError) as error:
        cache.resolve(source())
    assert str(error.value) == (
        f"korean_g2.zip: korean_g2.pth: expected md5 {hashlib.md5(PICKLES['korean_g2']).hexdigest()}, "
        f"found {hashlib.md5(b'other').hexdigest()}"
    )
    assert [path.suffix for path in cache.checkpoints.iterdir()] == [".lock"]


def test_zips_that_the_installed_easyocr_does_not_use_are_not_fetched(mirror: FileServer, tmp_path: Path) -> None:
    resolved = source().resolve()
    with pytest.raises(ConfigError) as error:
        source("en").fetch(resolved, tmp_path)
    assert str(error.value) == (
        "easyocr:en: craft_mlt_25k.zip, korean_g2.zip were locked, but the installed EasyOCR uses "
        "craft_mlt_25k.zip, english_g2.zip: run `prebake lock`, or install the EasyOCR version used for the lock"
    )


def test_a_mirror_that_is_no_url_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EASYOCR_MIRROR", "/srv/mirror")
    with pytest.raises(
        ConfigError, match=r'^EASYOCR_MIRROR: "/srv/mirror" is not an http:// or https:// URL with a host$'
    ):
        source().resolve()


# --- one member --------------------------------------------------------------------------------------------------


def _zip(folder: Path, members: dict[str, bytes]) -> Path:
    path = folder / "m.zip"
    path.write_bytes(make_zip(members))
    return path


def test_extract_writes_one_member(tmp_path: Path) -> None:
    archive = _zip(tmp_path, {"a.pth": b"weights", "__MACOSX/._a.pth": b"x"})
    out = tmp_path / "out"
    out.mkdir()
    assert extract(archive, "a.pth", out, hashlib.md5(b"weights").hexdigest()) == out / "a.pth"
    assert [path.name for path in out.iterdir()] == ["a.pth"]
    assert (out / "a.pth").read_bytes() == b"weights"


def test_extract_leaves_nothing_of_a_member_with_another_md5(tmp_path: Path) -> None:
    archive = _zip(tmp_path, {"a.pth": b"weights"})
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(IntegrityError, match=r"^m\.zip: a\.pth: expected md5 0{32}, found "):
        extract(archive, "a.pth", out, "0" * 32)
    assert list(out.iterdir()) == []


def test_extract_names_the_members_that_are_there(tmp_path: Path) -> None:
    archive = _zip(tmp_path, {"b.pth": b"", "c.pth": b""})
    with pytest.raises(SourceError) as error:
        extract(archive, "a.pth", tmp_path, None)
    assert str(error.value) == 'm.zip: has no member "a.pth" (it has "b.pth", "c.pth")'


def test_extract_refuses_a_zip_with_any_unsafe_member(tmp_path: Path) -> None:
    archive = _zip(tmp_path, {"a.pth": b"weights", "../evil.pth": b"x"})
    with pytest.raises(SourceError) as error:
        extract(archive, "a.pth", tmp_path, None)
    assert str(error.value) == 'm.zip: refused, nothing was unpacked:\n  "../evil.pth": leaves the folder'
