"""The catalogue finds the baked model of a source, at the revision that a load requests."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.runtime_fakes import manifest_of, write_manifest
from prebake.adopt.catalogue import Catalogue
from prebake.baked.manifest import Source
from prebake.errors import ConfigError

ONE, OTHER = "1" * 40, "2" * 40


def models(root: Path, **sources: tuple[str, str]) -> Catalogue:
    """A catalogue of models with these URIs and revisions."""
    for name, (uri, revision) in sources.items():
        write_manifest(root, manifest_of(name, source=Source(uri=uri, revision=revision)))
    return Catalogue.read(root)


def found(known: Catalogue, uri: str, class_: str | None = None) -> str | None:
    baked = known.find(uri, class_)
    return baked.name if baked else None


@pytest.mark.parametrize("declared", ["hf:acme/tiny", "hf:acme/tiny@main", f"hf:acme/tiny@{ONE}", "hf:acme/tiny@v1"])
def test_no_revision_finds_the_only_one(tmp_path: Path, declared: str) -> None:
    known = models(tmp_path, tiny=(declared, f"commit:{ONE}"))
    assert found(known, "hf:acme/tiny") == "tiny"
    assert found(known, "hf:acme/tiny@main") == "tiny"
    assert found(known, f"hf:acme/tiny@{ONE}") == "tiny"
    assert found(known, f"hf:acme/tiny@{OTHER}") is None
    assert found(known, "hf:acme/other") is None
    assert found(known, "hf:tiny") is None


def test_a_revision_is_found_by_its_declared_name(tmp_path: Path) -> None:
    known = models(tmp_path, tiny=("hf:acme/tiny@v1", f"commit:{ONE}"))
    assert (found(known, "hf:acme/tiny@v1"), found(known, "hf:acme/tiny@v2")) == ("tiny", None)


def test_of_two_revisions_no_revision_finds_the_default_branch(tmp_path: Path) -> None:
    known = models(tmp_path, a=(f"hf:acme/tiny@{OTHER}", f"commit:{OTHER}"), b=("hf:acme/tiny", f"commit:{ONE}"))
    assert found(known, "hf:acme/tiny") == "b"
    assert found(known, f"hf:acme/tiny@{OTHER}") == "a"


def test_a_commit_is_found_by_the_name_beside_it(tmp_path: Path) -> None:
    known = models(
        tmp_path, a=(f"hf:acme/tiny@v1@{OTHER}", f"commit:{OTHER}"), b=(f"hf:acme/tiny@main@{ONE}", f"commit:{ONE}")
    )
    asked = ("", "@main", f"@{ONE}", "@v1", f"@{OTHER}", "@v2")
    assert [found(known, f"hf:acme/tiny{each}") for each in asked] == ["b", "b", "b", "a", "a", None]


def test_beside_a_named_revision_no_revision_finds_the_one_without_a_name(tmp_path: Path) -> None:
    known = models(
        tmp_path, a=(f"hf:acme/tiny@v1@{OTHER}", f"commit:{OTHER}"), b=(f"hf:acme/tiny@{ONE}", f"commit:{ONE}")
    )
    assert found(known, "hf:acme/tiny") == "b"


def test_of_two_pinned_revisions_no_revision_finds_none(tmp_path: Path) -> None:
    known = models(tmp_path, a=(f"hf:acme/tiny@{OTHER}", f"commit:{OTHER}"), b=(f"hf:acme/tiny@{ONE}", f"commit:{ONE}"))
    assert found(known, "hf:acme/tiny") is None


def test_the_class_decides_between_models_of_one_source(tmp_path: Path) -> None:
    source = Source(uri="hf:acme/tiny", revision=f"commit:{ONE}")
    for name, class_ in (("a", "pkg:A"), ("b", "pkg:B")):
        write_manifest(tmp_path, manifest_of(name, source=source, class_=class_))
    known = Catalogue.read(tmp_path)
    assert found(known, "hf:acme/tiny") == "a"
    assert found(known, "hf:acme/tiny", "torch:pkg:B") == "b"
    assert found(known, "hf:acme/tiny", "torch:pkg:C") == "a"
    assert [baked.name for baked in known.matches("hf:acme/tiny")] == ["a", "b"]


def test_a_single_file_stands_for_no_network(tmp_path: Path) -> None:
    for name, family, class_ in (("a", "tensors", "tensors"), ("b", "transformers", "BertModel")):
        source = Source(uri="hf:acme/tiny", revision=f"commit:{ONE}")
        write_manifest(tmp_path, manifest_of(name, source=source, family=family, class_=class_))
    known = Catalogue.read(tmp_path)
    asked = (None, "transformers:BertModel", "transformers:BertForMaskedLM", "tensors:tensors")
    assert [found(known, "hf:acme/tiny", class_) for class_ in asked] == ["b", "b", "b", "a"]
    alone = Catalogue(known.models[:1])
    assert [found(alone, "hf:acme/tiny", class_) for class_ in asked] == ["a", None, None, "a"]


def test_other_classes_of_the_family_come_before_other_families(tmp_path: Path) -> None:
    for name, family, class_ in (("a", "timm", "x"), ("b", "transformers", "BertModel"), ("c", "transformers", "Bert")):
        source = Source(uri="hf:acme/tiny", revision=f"commit:{ONE}")
        write_manifest(tmp_path, manifest_of(name, source=source, family=family, class_=class_))
    known = Catalogue.read(tmp_path)
    for asked, names in (("transformers:Bert", "cba"), ("transformers:Other", "bca"), ("timm:y", "abc"), (None, "abc")):
        assert "".join(baked.name for baked in known.candidates("hf:acme/tiny", asked)) == names


def test_paths_are_the_same_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "app").mkdir()
    monkeypatch.chdir(tmp_path / "app")
    known = models(
        tmp_path / "models", near=("path:weights", "sha256:" + "0" * 64), far=("path:/data/far", "sha256:" + "0" * 64)
    )
    assert found(known, "path:./weights") == "near"
    assert found(known, f"path:{tmp_path}/app/weights") == "near"
    assert found(known, "path:/data/other/../far") == "far"
    assert found(known, "path:/weights") is None
    assert found(known, f"path:{tmp_path}/models/far") == "far"


def test_other_sources_are_found_as_they_are_spelled(tmp_path: Path) -> None:
    known = models(tmp_path, ocr=("easyocr:ko+en", "sha256:" + "0" * 64))
    assert (found(known, "easyocr:ko+en"), found(known, "easyocr:ko")) == ("ocr", None)


def test_no_folder_is_an_empty_catalogue(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / ".hub").mkdir()
    for root in (tmp_path, tmp_path / "missing"):
        assert Catalogue.read(root).models == ()
        assert Catalogue.read(root).described == "nothing"


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    write_manifest(tmp_path, manifest_of("caption"))
    (tmp_path / "caption").rename(tmp_path / "other")
    with pytest.raises(ConfigError) as caught:
        Catalogue.read(tmp_path)
    assert str(caught.value) == f'{tmp_path}/other: its manifest names another model, "caption"'


def test_messages_name_models_and_sources(tmp_path: Path) -> None:
    known = models(tmp_path, b=("hf:acme/b", f"commit:{ONE}"), a=("path:x", "sha256:" + "0" * 64))
    assert known.described == "a (path:x), b (hf:acme/b)"
