"""Lines of loads become one finding for each model, as `models.toml` spells it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prebake.adopt.loads import Load
from prebake.errors import PrebakeError
from prebake_build.scanning.findings import Finding, findings_of, read_loads

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "fedcba9876543210fedcba9876543210fedcba98"
TINY = f"hf:acme/tiny@{COMMIT}"


def load(uri: str | None = TINY, class_: str | None = "transformers:BertModel", **changes: Any) -> Load:
    values: dict[str, Any] = {
        "library": "transformers",
        "function": "BertModel.from_pretrained",
        "dtype": "float32",
        "seconds": 1.0,
    }
    return Load(uri=uri, class_=class_, **(values | changes))


def found(*loads: Load, base: Path = Path("/project")) -> list[Finding]:
    return findings_of(loads, base)


def test_lines_are_read_back(tmp_path: Path) -> None:
    loads = [load(), load(detail={"file": "x.pth"}, obstacle="remote code")]
    (tmp_path / "loads").write_text("".join(each.line for each in loads))
    assert read_loads(tmp_path / "loads") == loads
    assert read_loads(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", ":1: is not a load: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ('{"library": 3}', ":1: library: expected a string, found a whole number (3)"),
        ("[]", ":1: expected a table, found a list"),
    ],
)
def test_a_line_that_is_no_load_is_refused(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "loads").write_text(line + "\n")
    with pytest.raises(PrebakeError) as caught:
        read_loads(tmp_path / "loads")
    assert str(caught.value) == f"{tmp_path}/loads{message}"


def test_the_same_load_in_several_processes_is_one_finding_with_the_longest_time() -> None:
    (only,) = found(load(seconds=1.0), load(seconds=3.0), load(seconds=2.0))
    assert (only.uri, only.class_, only.loads, only.seconds) == (TINY, "transformers:BertModel", 3, 3.0)


@pytest.mark.parametrize(
    "other",
    [load(f"hf:acme/tiny@{OTHER}"), load(class_="transformers:BertForMaskedLM"), load(dtype="float16"),
     load(detail={"file": "other.safetensors"}), load(obstacle="quantisation at load")],
    ids=["revision", "class", "dtype", "file", "obstacle"],
)  # fmt: skip
def test_what_differs_is_another_finding(other: Load) -> None:
    assert [finding.loads for finding in found(load(), other, load())] == [2, 1]


def test_a_load_that_failed_is_told_unless_the_model_was_loaded_after_all() -> None:
    failed = load(class_=None, outcome="failed", reason="OSError: no such file", obstacle="remote code")
    (only,) = found(failed, failed)
    assert (only.failed, only.obstacle, only.loads) == ("OSError: no such file", None, 2)
    (only,) = found(failed, load())
    assert (only.failed, only.class_) == (None, "transformers:BertModel")


def test_single_files_belong_to_the_model_of_their_repository() -> None:
    tokenizer = load(class_=None, function="hf_hub_download", library="huggingface_hub", detail={"file": "vocab.txt"})
    unpinned = load("hf:acme/tiny", None)
    assert [finding.class_ for finding in found(tokenizer, load(), unpinned)] == ["transformers:BertModel"]


def test_single_files_of_no_model_cannot_be_baked() -> None:
    files = [load(class_=None, detail={"file": name}) for name in ("a.json", "b.json")]
    (only,) = found(*files)
    assert (only.uri, only.obstacle) == (TINY, "single files, and no load of a model")


@pytest.mark.parametrize(
    ("load", "obstacle"),
    [
        (load(obstacle="remote code"), "remote code"),
        (load(None), "its source is unknown"),
        (load(detail={"subfolder": "unet"}), "models.toml has no key for subfolder='unet'"),
        (load(detail={"variant": "fp16", "languages": ["ko"]}), None),
    ],
)
def test_what_cannot_be_baked_is_told(load: Load, obstacle: str | None) -> None:
    assert [finding.obstacle for finding in found(load)] == [obstacle]


@pytest.mark.parametrize(
    ("uri", "source"),
    [
        ("path:/project/weights/tiny", "path:weights/tiny"),
        ("path:/elsewhere/tiny", "path:../elsewhere/tiny"),
        (f"path:/root/.cache/huggingface/hub/models--acme--tiny/snapshots/{COMMIT}", TINY),
        (f"path:/x/models--acme--my-tiny.1/snapshots/{COMMIT}/", f"hf:acme/my-tiny.1@{COMMIT}"),
        (f"path:/x/models--gpt2/snapshots/{COMMIT}", f"hf:gpt2@{COMMIT}"),
        ("easyocr:ko+en", "easyocr:ko+en"),
        ("url:https://example.org/x.pth", "url:https://example.org/x.pth"),
    ],
)
def test_sources_are_spelled_as_in_the_file(uri: str, source: str) -> None:
    assert [finding.uri for finding in found(load(uri))] == [source]


@pytest.mark.parametrize("snapshot", [True, False])
def test_a_single_file_is_its_folder_and_its_name(tmp_path: Path, snapshot: bool) -> None:
    folder = tmp_path / (f"hub/models--acme--tiny/snapshots/{COMMIT}/sub" if snapshot else "weights")
    folder.mkdir(parents=True)
    (folder / "net.pth").write_bytes(b"")
    (only,) = found(load(f"path:{folder}/net.pth", "tensors"), base=tmp_path)
    assert (only.uri, only.keys) == (
        (TINY, {"file": "sub/net.pth"}) if snapshot else ("path:weights", {"file": "net.pth"})
    )


def test_a_relative_path_is_that_of_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "app").mkdir()
    monkeypatch.chdir(tmp_path / "app")
    assert [finding.uri for finding in found(load("path:tiny"), base=tmp_path)] == ["path:app/tiny"]


def test_keys_are_kept() -> None:
    (only,) = found(load(class_="timm:resnet18", detail={"arguments": {"num_classes": 3}, "variant": None}))
    assert only.keys == {"arguments": {"num_classes": 3}}
