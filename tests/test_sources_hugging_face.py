"""`hf:` against a local server that speaks the hub's endpoints."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub_server import COMMIT, REPO, HubServer
from prebake.errors import ConfigError, IntegrityError, SourceError
from prebake.manifest import File
from prebake_build.cache import Cache
from prebake_build.sources import Resolved
from prebake_build.sources.hugging_face import HuggingFaceSource, choose

TOKEN = "hf_verySecretTokenOfTheTest"
FILES = {
    "config.json": b'{"model_type": "blip"}',
    "pytorch_model.bin": b"pickle" * 1000,
    "tokenizer.json": b"{}",
    "vocab.txt": b"[PAD]\n",
    "README.md": b"card",
    "tf_model.h5": b"tensorflow",
}
ACCESS = (
    "set HF_TOKEN to a token that may read it; in an image build hand it over as a secret, never as a build argument: "
    "--secret id=hf_token,env=HF_TOKEN"
)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer(FILES, card={"license": "bsd-3-clause"}) as server:
        _use(monkeypatch, server.url)
        yield server


def _use(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    # The client waits between its own tries.
    monkeypatch.setattr("time.sleep", lambda seconds: None)


def source(rest: str = REPO) -> HuggingFaceSource:
    return HuggingFaceSource.parse(f"hf:{rest}", rest, "models.toml: models.tiny.source")


def locked(**files: bytes) -> Resolved:
    names = files or {name: FILES[name] for name in ("config.json", "pytorch_model.bin")}
    return Resolved(
        revision=f"commit:{COMMIT}",
        files=tuple(
            File(path=path, size=len(body), sha256=hashlib.sha256(body).hexdigest())
            for path, body in sorted(names.items())
        ),
    )


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


# --- what can go wrong -------------------------------------------------------------------------------------------


def _message(call: object) -> str:
    with pytest.raises(SourceError) as error:
        call()  # type: ignore[operator]
    assert error.value.__cause__ is None, "the client's errors hold the request, and with it the token"
    return str(error.value)


def test_an_unknown_model(hub: HubServer) -> None:
    assert _message(source("acme/tinny").resolve) == (
        f'hf:acme/tinny: {hub.url} knows no model "acme/tinny": check the spelling; or it is private: {ACCESS}'
    )


def test_a_model_that_the_token_cannot_read(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert _message(source("acme/tinny").resolve) == (
        f'hf:acme/tinny: {hub.url} knows no model "acme/tinny": check the spelling; or the token in use cannot read it'
    )


def test_an_unknown_revision(hub: HubServer) -> None:
    assert _message(source(f"{REPO}@v9").resolve) == (
        f'hf:acme/tiny@v9: "acme/tiny" has no revision "v9": check the branch, tag or commit at '
        f"{hub.url}/acme/tiny/commits/main, then run `prebake lock`"
    )


@pytest.mark.parametrize("token", [None, "hf_ofSomebodyElse"])
def test_a_gated_model_without_access(hub: HubServer, token: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.gated, hub.token = True, TOKEN
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    who = "the token in use has no access" if token else "no token is set"
    expected = f"hf:acme/tiny: this model is gated, and {who}: ask for access at {hub.url}/acme/tiny, then {ACCESS}"
    assert _message(source().resolve) == expected


def test_a_gated_model_when_fetching(hub: HubServer, tmp_path: Path) -> None:
    hub.gated, hub.token = True, TOKEN
    assert "this model is gated, and no token is set" in _message(lambda: source().fetch(locked(), tmp_path))


def test_a_hub_that_cannot_be_reached(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("HF_ENDPOINT", url)
    for message in (_message(source().resolve), _message(lambda: source().fetch(locked(), tmp_path))):
        assert message.startswith(f"hf:acme/tiny: cannot reach the hub at {url}: ")
        assert message.endswith(": check the network and the proxy settings, or name a mirror with HF_ENDPOINT")


def test_a_hub_that_is_down(hub: HubServer) -> None:
    hub.status = 503
    assert _message(source().resolve).startswith(f"hf:acme/tiny: {hub.url} answers 503: ")


def test_a_refused_token(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """As huggingface_hub tells it apart from an unknown model: the words of the header."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    error = huggingface_hub.errors.HfHubHTTPError("401", response=_Refusal())  # type: ignore[arg-type]
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", _raise(error))
    assert _message(source().resolve) == (
        f"hf:acme/tiny: {hub.url} refuses the token in use: renew it at {hub.url}/settings/tokens, then {ACCESS}"
    )


class _Refusal:
    status_code = 401
    headers: dict[str, str] = {}  # noqa: RUF012
    request = None


def _raise(error: BaseException) -> object:
    def call(*_: object, **__: object) -> None:
        raise error

    return call


def test_a_locked_file_that_upstream_removed(hub: HubServer, tmp_path: Path) -> None:
    del hub.files["config.json"]
    message = _message(lambda: source().fetch(locked(), tmp_path))
    assert message.startswith(f"hf:acme/tiny: a locked file is gone from {hub.url}/acme/tiny: run `prebake lock` (")


def test_a_repository_without_pytorch_weights(hub: HubServer) -> None:
    hub.files = {"config.json": b"{}", "model.gguf": b"", "flax_model.msgpack": b"", "model.fp16.safetensors": b""}
    assert _message(source().resolve) == (
        "hf:acme/tiny: has no PyTorch weights under a default name (expected one of model.safetensors, "
        "model.safetensors.index.json, pytorch_model.bin, pytorch_model.bin.index.json; found flax_model.msgpack, "
        "model.fp16.safetensors, model.gguf): name single files with a url: source, or convert a copy and use path:"
    )


def test_offline_mode_is_named(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    offline = huggingface_hub.errors.OfflineModeIsEnabled("Cannot reach it: offline mode is enabled.")
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", _raise(offline))
    assert _message(source().resolve) == (
        "hf:acme/tiny: HF_HUB_OFFLINE forbids asking the hub: unset it for `prebake lock` and for the first bake"
    )


def test_a_full_disk_is_told_apart_from_a_hub_out_of_reach(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "/cache/x")
    monkeypatch.setattr("huggingface_hub.HfApi.hf_hub_download", _raise(full))
    with Cache() as cache:
        assert "no space left while writing below /cache/x" in str(_full(cache))


def _full(cache: Cache) -> SourceError:
    with pytest.raises(SourceError) as error:
        cache.checkpoint(source(), locked())
    return error.value


def test_the_token_is_in_no_message_and_no_file(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.gated, hub.token = True, TOKEN
    caplog.set_level(logging.DEBUG)
    messages = []
    with Cache() as cache:
        cache.checkpoint(source(), cache.resolve(source()))
        for change in ({"token": "another"}, {"status": 401}, {"status": 500}, {"status": None, "repo": "acme/none"}):
            for name, value in change.items():
                setattr(hub, name, value)
            messages.append(_message(source().resolve))
        monkeypatch.setattr("huggingface_hub.HfApi.model_info", _raise(ValueError(f"header 'Bearer {TOKEN}'")))
        messages.append(_message(source().resolve))
    written = "".join(path.read_text("latin-1") for path in cache.folder.rglob("*") if path.is_file())
    printed = capfd.readouterr()
    for text in (*messages, written, caplog.text, printed.out, printed.err):
        assert TOKEN not in text
    assert "'Bearer ***'" in messages[-1]


def test_a_mirrors_password_is_in_no_message(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.url.replace("//", "//someone:pa55word@"))
    message = _message(source("acme/none").resolve)
    assert "pa55word" not in message
    assert "//***@127.0.0.1" in message


# --- the URI, and the choice of files ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rest", ["", "tiny", "a/b/c", "acme/tiny@", "acme/tiny@a b", "acme/../x", "../tiny", "acme/ti ny"]
)
def test_a_uri_that_names_no_model_is_refused(rest: str) -> None:
    with pytest.raises(ConfigError) as error:
        source(rest)
    assert str(error.value) == (
        f'models.toml: models.tiny.source: "hf:{rest}" is not of the form "hf:ORG/NAME" or "hf:ORG/NAME@REVISION"'
    )


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
        "hf:a/b: pytorch_model.bin.index.json: is no index of shards (expected a weight_map from tensors to files)"
    )


def test_missing_shards_are_named() -> None:
    index = '{"weight_map": {"a": "b.bin", "c": "a.bin", "d": "there.bin"}}'
    with pytest.raises(SourceError) as error:
        choose(["pytorch_model.bin.index.json", "there.bin"], lambda path: index, "hf:a/b")
    assert str(error.value) == "hf:a/b: pytorch_model.bin.index.json names shards that are not there: a.bin, b.bin"


@given(st.lists(st.sampled_from(["config.json", "a.py", "../x.json", "model.safetensors", "x/y.bin", "vocab.txt"])))
def test_the_choice_is_sorted_unique_and_of_what_is_there(paths: list[str]) -> None:
    chosen = choose(["model.safetensors", *paths], _no_index, "x")
    assert list(chosen) == sorted(set(chosen))
    assert set(chosen) <= {"model.safetensors", *paths} - {"a.py", "../x.json", "x/y.bin"}
