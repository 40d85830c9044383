"""The manifest: one spelling, checked when it is read; and a folder held against it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import ROOT
from helpers.runtime_fakes import SHA, change_manifest, manifest_of, python, write_manifest
from prebake.baked import layout
from prebake.baked.manifest import FORMAT, File, Loading, Manifest, Source, Weights, set_digest
from prebake.baked.model import BakedModel
from prebake.documents.table import Table
from prebake.errors import DocumentError, IntegrityError, NewerFormatError
from prebake.families.family import NAMES as FAMILIES

SCHEMA = json.loads((ROOT / "docs" / "manifest.schema.json").read_text(encoding="utf-8"))

WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
COUNTS = st.integers(0, 2**63)
NAMES = st.from_regex(layout.MODEL_NAME, fullmatch=True)
PATHS = st.lists(st.from_regex(r"[^/\\:\x00\ud800-\udfff]{1,8}", fullmatch=True).filter(lambda p: p not in (".", "..")),
                 min_size=1, max_size=3).map("/".join).filter(layout.is_inside)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=5,
)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    paths = sorted(draw(st.sets(PATHS, min_size=1, max_size=5)))
    files = tuple(File(path=path, size=draw(COUNTS), sha256=draw(st.from_regex(r"[0-9a-f]{64}", fullmatch=True)))
                  for path in paths)  # fmt: skip
    weights = Weights(
        files=tuple(draw(st.lists(st.sampled_from(paths), max_size=3))),
        buffers=draw(st.none() | st.sampled_from(paths)),
        tensors=draw(COUNTS),
        bytes=draw(COUNTS),
        dtypes=draw(st.dictionaries(WORDS, COUNTS, max_size=3)),
        aliases=draw(st.dictionaries(WORDS, WORDS, max_size=3)),
    )
    timeout = st.none() | st.floats(min_value=0.001, max_value=1e6)
    return Manifest(
        name=draw(NAMES),
        family=draw(st.sampled_from(FAMILIES) | WORDS),
        class_=draw(WORDS),
        options=draw(st.dictionaries(WORDS, VALUES, max_size=3)),
        loading=Loading(retries=draw(st.integers(0, 10)), timeout=draw(timeout), required=draw(st.booleans())),
        source=Source(uri=draw(WORDS), revision=draw(WORDS), licence=draw(st.none() | WORDS)),
        files=files,
        weights=weights,
        converter=draw(st.dictionaries(WORDS, WORDS, max_size=2)),
        requires=draw(st.dictionaries(WORDS, WORDS, max_size=2)),
    )


def document(**changes: Any) -> dict[str, Any]:
    """A right manifest as JSON, with some keys changed; a change to None leaves the key out."""
    whole = json.loads(manifest_of().text) | changes
    return {key: value for key, value in whole.items() if value is not None}


def refusal(data: object) -> str:
    with pytest.raises(DocumentError) as error:
        table = Table(data, "manifest.json")
        table.take("format", int, FORMAT)
        Manifest.from_table(table)
    return str(error.value)


@given(manifests())
def test_what_is_written_is_read_as_the_same_and_written_the_same(manifest: Manifest) -> None:
    table = Table(json.loads(manifest.text), "manifest.json")
    table.take("format", int)
    again = Manifest.from_table(table)
    assert again == manifest
    assert again.text == manifest.text


@given(manifests())
def test_whatever_the_types_allow_the_schema_allows(manifest: Manifest) -> None:
    jsonschema.validate(json.loads(manifest.text), SCHEMA)


def test_the_set_digest_is_what_sha256sum_and_sort_give() -> None:
    files = [File(path="b", size=1, sha256="bb" * 32), File(path="a", size=1, sha256="aa" * 32)]
    assert set_digest(files) == set_digest(reversed(files))
    assert set_digest(files) == "sha256:484bcbb7d16ffcba78a16ecc948318c2f39b3bebb677b643fad91391750add89"


def changed_file(**changes: Any) -> list[dict[str, Any]]:
    return [{"path": layout.WEIGHTS, "size": 10, "sha256": SHA} | changes]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "Caption"}, 'name: "Caption" is not a valid model name'),
        ({"name": 1}, "name: expected a string, found a whole number (1)"),
        ({"clas": "x"}, 'clas: unknown key: did you mean "class"?'),
        ({"source": {"uri": "x", "revision": "y", "license": "MIT"}},
         'source.license: unknown key: did you mean "licence"?'),
        ({"loading": {"retry": 3}}, 'loading.retry: unknown key: did you mean "retries"?'),
        ({"loading": {"retries": -1}}, "loading.retries: -1 is negative"),
        ({"loading": {"timeout": 0}}, "loading.timeout: 0 is not a valid timeout (expected seconds above 0)"),
        ({"loading": {"timeout": float("inf")}},
         "loading.timeout: inf is not a valid timeout (expected seconds above 0)"),
        ({"files": []}, 'weights.files: "model.safetensors" is not among the files'),
        ({"files": changed_file(path="../x")}, 'files[0].path: "../x" leaves the model\'s folder'),
        ({"files": changed_file(path="/etc/passwd")}, 'files[0].path: "/etc/passwd" leaves the model\'s folder'),
        ({"files": changed_file(path="a//b")}, 'files[0].path: "a//b" leaves the model\'s folder'),
        ({"files": changed_file(path="C:x")}, 'files[0].path: "C:x" leaves the model\'s folder'),
        ({"files": changed_file(path="a\\b")}, 'files[0].path: "a\\\\b" leaves the model\'s folder'),
        ({"files": changed_file(size=-1)}, "files[0].size: -1 is negative"),
        ({"files": changed_file(sha256="AB" * 32)}, f'files[0].sha256: "{"AB" * 32}" is not 64 hexadecimal digits'),
        ({"files": changed_file() * 2}, "files: expected each path once, sorted"),
        ({"files": changed_file(path="z") + changed_file()}, "files: expected each path once, sorted"),
        ({"weights": None}, "weights: is missing (expected a table)"),
        ({"weights": {"files": ["other"], "tensors": 1, "bytes": 1, "dtypes": {}}},
         'weights.files: "other" is not among the files'),
        ({"weights": {"files": [], "buffers": "other", "tensors": 1, "bytes": 1, "dtypes": {}}},
         'weights.files: "other" is not among the files'),
        ({"weights": {"files": [], "tensors": 1, "bytes": 1, "dtypes": {"F32": "1"}}},
         'weights.dtypes.F32: expected a whole number, found the string "1"'),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_with_its_path(changes: dict[str, Any], message: str) -> None:
    assert refusal(document(**changes)) == f"manifest.json: {message}"


def test_a_set_digest_that_does_not_fit_the_files_is_refused() -> None:
    right = manifest_of().set_digest
    assert refusal(document(set_digest="sha256:0")) == (
        f"manifest.json: set_digest: sha256:0 does not match the files listed ({right})"
    )


def test_a_manifest_of_a_newer_prebake_says_so_whatever_else_is_in_it(tmp_path: Path) -> None:
    folder = write_manifest(tmp_path, manifest_of())
    change_manifest(folder, format=FORMAT + 1, future={"a": 1})
    with pytest.raises(NewerFormatError) as error:
        Manifest.read(folder)
    assert str(error.value) == (
        f"{folder}/manifest.json: format: this manifest has format {FORMAT + 1}, but this Prebake reads up to "
        f"{FORMAT}: update prebake, or bake again with this version"
    )


def test_a_folder_without_manifest_and_no_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DocumentError) as error:
        BakedModel.open(tmp_path)
    assert str(error.value) == f"{tmp_path}/manifest.json: there is no such file (expected a manifest)"
    with pytest.raises(DocumentError) as error:
        BakedModel.open(tmp_path / "absent")
    assert str(error.value) == f"{tmp_path}/absent: there is no such folder (expected a baked model)"


def test_every_file_that_is_missing_or_of_another_size_is_listed(tmp_path: Path) -> None:
    files = tuple(File(path=name, size=10, sha256=SHA) for name in ("config.json", layout.WEIGHTS, "sub/vocab.txt"))
    manifest = manifest_of(files=files)
    folder = write_manifest(tmp_path, manifest)
    manifest.check_sizes(folder)
    (folder / "config.json").unlink()
    (folder / layout.WEIGHTS).write_bytes(bytes(4096))
    (folder / "sub" / "vocab.txt").unlink()
    (folder / "sub").rmdir()
    (folder / "sub").write_text("a file now")
    with pytest.raises(IntegrityError) as error:
        manifest.check_sizes(folder)
    assert str(error.value) == (
        f"{folder}: differs from its manifest:\n"
        "  config.json: missing\n"
        "  model.safetensors: expected 10 bytes, found 4,096\n"
        "  sub/vocab.txt: Not a directory\n"
        "Bake or pull this model again."
    )


def test_a_folder_in_a_files_place_is_no_file(tmp_path: Path) -> None:
    folder = write_manifest(tmp_path, manifest_of())
    (folder / layout.WEIGHTS).unlink()
    (folder / layout.WEIGHTS).mkdir()
    with pytest.raises(IntegrityError, match=r"\n  model\.safetensors: expected a file, found something else\n"):
        manifest_of().check_sizes(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_file_that_another_user_may_not_read_is_named_with_the_user(tmp_path: Path) -> None:
    folder = write_manifest(tmp_path, manifest_of())
    for above in (folder, *folder.parents):
        if above != Path("/tmp"):
            above.chmod(above.stat().st_mode | 0o055)  # pytest's own folders are 0700
        if above == tmp_path.parents[2]:
            break
    (folder / layout.WEIGHTS).chmod(0o600)
    done = python(
        "import os, sys, pathlib\n"
        "from prebake.baked.manifest import Manifest\n"
        "os.setuid(65534)\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "Manifest.read(folder).check_sizes(folder)",
        folder,
    )
    assert done.stderr.splitlines()[-2:] == [
        "  model.safetensors: not readable for user 65534 (files of a baked model are 0644)",
        "Bake or pull this model again.",
    ]


def test_the_schema_is_a_schema_and_closed_everywhere() -> None:
    """Every object either forbids other keys or says of what kind its free keys are."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)

    def objects(schema: Any) -> list[dict[str, Any]]:
        if isinstance(schema, list):
            return [found for item in schema for found in objects(item)]
        if not isinstance(schema, dict):
            return []
        own = [schema] if schema.get("type") == "object" else []
        return own + [found for item in schema.values() for found in objects(item)]

    assert len(objects(SCHEMA)) >= 8
    assert all("additionalProperties" in found for found in objects(SCHEMA))


def test_schema_and_reader_know_the_same_keys() -> None:
    written = json.loads(manifest_of(loading=Loading(warmup="app:warm")).text)
    assert SCHEMA["properties"].keys() == written.keys()
    written["weights"]["prefixes"] = {}  # written only where a file has one
    for name in ("loading", "source", "weights"):
        assert SCHEMA["properties"][name]["properties"].keys() == written[name].keys()
    assert SCHEMA["properties"]["files"]["items"]["properties"].keys() == written["files"][0].keys()


@pytest.mark.parametrize(
    "changes",
    [
        {"more": 1}, {"format": 2}, {"format": 0}, {"name": "-caption"}, {"family": 3}, {"weights": None},
        {"set_digest": "sha256:0"}, {"files": changed_file(more=1)}, {"files": changed_file(path="../x")},
        {"files": changed_file(path="/x")}, {"files": changed_file(size=-1)}, {"files": changed_file(sha256="x")},
        {"source": {"uri": "x"}}, {"loading": {"retries": 3, "timeout": 0, "required": True}},
        {"loading": {"retry": 3}}, {"converter": {"prebake-build": 1}},
    ],
)  # fmt: skip
def test_the_schema_refuses_what_the_reader_refuses(changes: dict[str, Any]) -> None:
    jsonschema.validate(document(), SCHEMA)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document(**changes), SCHEMA)


def test_the_manifests_of_a_real_bake_fit_the_schema(tiny_models: Path) -> None:
    for name in ("caption", "florence", "ocr"):
        text = (tiny_models / name / layout.MANIFEST).read_text(encoding="utf-8")
        jsonschema.validate(json.loads(text), SCHEMA)
        assert Manifest.read(tiny_models / name).text == text


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux")
@pytest.mark.parametrize("path", ["a/../b", "./a", "", "a/", "..", "a\0b"])
def test_a_path_with_odd_parts_leaves_the_folder(path: str) -> None:
    assert not layout.is_inside(path)
