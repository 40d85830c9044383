"""`hf:` against a local server that speaks the hub's endpoints: the files that a load needs, as they were locked."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.hub_model import FILES, TOKEN, locked, source
from helpers.hub_server import COMMIT, REPO, HubServer
from prebake.errors import ConfigError, IntegrityError, SourceError
from prebake_build.cache.checkpoints import Cache
from prebake_build.sources import Resolved
from prebake_build.sources.selection import choose

# --- resolving ---------------------------------------------------------------------------------------------------


def test_resolves_to_a_commit_with_sizes_hashes_and_the_licence(hub: HubServer) -> None:
    wanted = ("config.json", "pytorch_model.bin", "tokenizer.json", "vocab.txt")
    expected = locked(**{name: FILES[name] for name in wanted})
    assert source().resolve() == Resolved(revision=f"commit:{COMMIT}", files=expected.files, licence="bsd-3-clause")


def test_resolving_downloads_no_file_whose_hash_the_hub_publishes(hub: HubServer) -> None:
    source().resolve()
    assert hub.cdn.requests == []
    assert not [request for request in hub.requests if request.path.endswith(".bin")]


@pytest.mark.parametrize("revision", ["main", "v1.0", "refs/pr/7", COMMIT])
def test_branches_tags_pull_requests_and_commits_are_revisions(hub: HubServer, revision: str) -> None:
    hub.branches = ("main", "v1.0", "refs/pr/7")
    assert source(f"{REPO}@{revision}").resolve().revision == f"commit:{COMMIT}"


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        (None, None),
        ({}, None),
        ({"license": "mit"}, "mit"),
        ({"license": "other", "license_name": "llama3"}, "llama3"),
        ({"license": "other"}, "other"),
        ({"license": ["mit", "apache-2.0"]}, None),
    ],
)
def test_the_licence_is_what_the_model_card_declares(hub: HubServer, card: dict[str, str], licence: str | None) -> None:
    hub.card = card
    assert source().resolve().licence == licence


def test_shards_are_those_that_the_index_names(hub: HubServer) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    hub.files |= {
        "model.safetensors.index.json": json.dumps(index).encode(),
        "model-00001-of-00002.safetensors": b"one",
        "model-00002-of-00002.safetensors": b"two",
        "model-00003-of-00003.safetensors": b"of another export",
    }
    assert [file.path for file in source().resolve().files] == [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "vocab.txt",
    ]


# --- fetching ----------------------------------------------------------------------------------------------------


def test_files_that_a_failed_fetch_completed_are_not_fetched_again(hub: HubServer) -> None:
    with Cache() as cache:
        resolved = source().resolve()
        hub.served["pytorch_model.bin"] = FILES["pytorch_model.bin"][:100]  # huggingface_hub 0.x goes on from there
        with pytest.raises(SourceError):
            cache.checkpoint(source(), resolved)
        assert len(list(cache.checkpoints.glob("*.parts.tmp/.hub/vocab.txt"))) == 1
        hub.served.clear()
        hub.requests.clear()
        folder = cache.checkpoint(source(), resolved)
        fetched = [request.path.rpartition("/")[2] for request in hub.requests if request.method == "GET"]
        assert "vocab.txt" not in fetched
        assert not list(cache.checkpoints.glob("*.tmp"))
    assert (folder / "pytorch_model.bin").read_bytes() == FILES["pytorch_model.bin"]


def test_fetching_writes_exactly_the_locked_files(hub: HubServer, tmp_path: Path) -> None:
    source().fetch(locked(), tmp_path)
    found = {path.name: path.read_bytes() for path in tmp_path.rglob("*")}
    assert found == {name: FILES[name] for name in ("config.json", "pytorch_model.bin")}


def test_fetching_asks_for_the_locked_commit_whatever_the_branch_is_now(hub: HubServer, tmp_path: Path) -> None:
    hub.branches = ()
    source(f"{REPO}@main").fetch(locked(), tmp_path)
    assert (tmp_path / "config.json").exists()


def test_the_token_goes_to_the_hub_and_not_to_the_cdn(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.gated, hub.token = True, TOKEN
    source().fetch(locked(), tmp_path)
    assert {request.authorization for request in hub.requests} == {f"Bearer {TOKEN}"}
    assert {request.authorization for request in hub.cdn.requests} == {None}


def test_a_changed_file_is_refused_and_nothing_is_left(hub: HubServer) -> None:
    resolved = locked()
    hub.served["pytorch_model.bin"] = b"PICKLE" * 1000
    hub.served["config.json"] = b'{"model_type": "BLIP"}'
    with Cache() as cache, pytest.raises(IntegrityError) as error:
        cache.checkpoint(source(), resolved)
    found = {name: hashlib.sha256(body).hexdigest() for name, body in hub.served.items()}
    assert str(error.value) == (
        "hf:acme/tiny: not the files that were promised:\n"
        f"  config.json: expected sha256 {resolved.files[0].sha256}, found {found['config.json']}\n"
        f"  pytorch_model.bin: expected sha256 {resolved.files[1].sha256}, found {found['pytorch_model.bin']}"
    )
    assert [path.suffix for path in cache.checkpoints.iterdir()] == [".lock"]


def test_a_locked_and_cached_model_needs_no_hub(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with Cache() as cache:
        resolved = cache.resolve(source())
        first = cache.checkpoint(source(), resolved)
    asked = len(hub.requests)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with Cache() as cache:
        assert cache.checkpoint(source(), resolved, verify=True) == first
    assert len(hub.requests) == asked


# --- the URI, and the choice of files ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rest",
    ["", "tiny/", "a/b/c", "acme/tiny@", "acme/tiny@a b", "acme/../x", "../tiny", "acme/ti ny", "acme/tiny@v1@v2"],
)
def test_a_uri_that_names_no_model_is_refused(rest: str) -> None:
    with pytest.raises(ConfigError) as error:
        source(rest)
    assert str(error.value) == (
        f'models.toml: models.tiny.source: "hf:{rest}" is not of the form "hf:ORG/NAME", "hf:ORG/NAME@REVISION" or '
        '"hf:ORG/NAME@NAME@COMMIT"'
    )


@pytest.mark.parametrize(
    ("rest", "revision"),
    [("acme/tiny", None), ("acme/tiny@v1", "v1"), (f"acme/tiny@{COMMIT}", COMMIT), (f"acme/tiny@v1@{COMMIT}", COMMIT)],
)
def test_a_commit_beside_a_name_is_what_is_asked_for(rest: str, revision: str | None) -> None:
    assert (source(rest).repo, source(rest).revision) == ("acme/tiny", revision)


def _no_index(path: str) -> str:
    raise AssertionError(path)


def test_safetensors_come_before_pickles() -> None:
    paths = ["model.safetensors", "pytorch_model.bin", "config.json", "pytorch_model.bin.index.json"]
    assert choose(paths, _no_index, "x") == ("config.json", "model.safetensors")


def test_only_what_a_pytorch_load_needs_is_chosen() -> None:
    needed = [
        "additional_chat_templates/rag.jinja", "chat_template.jinja", "config.json", "generation_config.json",
        "merges.txt", "model.safetensors", "preprocessor_config.json", "processor_config.json",
        "sentencepiece.bpe.model", "special_tokens_map.json", "spiece.model", "tokenizer.json",
        "tokenizer_config.json", "vocab.json", "vocab.txt",
    ]  # fmt: skip
    refused = [
        ".gitattributes", "README.md", "LICENSE", "tf_model.h5", "flax_model.msgpack", "model.onnx", "model.gguf",
        "onnx/config.json", "onnx/model.onnx", "example.png", "training_args.bin", "optimizer.pt", "scheduler.pt",
        "rng_state.pth", "trainer_state.json", "all_results.json", "modeling_x.py", "requirements.txt",
        "rust_model.ot", "checkpoint-100/config.json", "model.fp16.safetensors", "adapter_model.safetensors",
    ]  # fmt: skip
    assert choose(refused + needed, _no_index, "x") == tuple(needed)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": "../x"}}', '{"weight_map": {"a": 1}}']
)
def test_an_index_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(SourceError) as error:
        choose(["pytorch_model.bin.index.json"], lambda path: text, "hf:a/b")
    assert str(error.value) == (
        "hf:a/b: pytorch_model.bin.index.json: is not an index of shards (expected a weight_map from tensors to files)"
    )


def test_missing_shards_are_named() -> None:
    index = '{"weight_map": {"a": "b.bin", "c": "a.bin", "d": "there.bin"}}'
    with pytest.raises(SourceError) as error:
        choose(["pytorch_model.bin.index.json", "there.bin"], lambda path: index, "hf:a/b")
    assert str(error.value) == "hf:a/b: pytorch_model.bin.index.json lists missing shards: a.bin, b.bin"


@given(st.lists(st.sampled_from(["config.json", "a.py", "../x.json", "model.safetensors", "x/y.bin", "vocab.txt"])))
def test_the_choice_is_sorted_unique_and_of_what_is_there(paths: list[str]) -> None:
    chosen = choose(["model.safetensors", *paths], _no_index, "x")
    assert list(chosen) == sorted(set(chosen))
    assert set(chosen) <= {"model.safetensors", *paths} - {"a.py", "../x.json", "x/y.bin"}
