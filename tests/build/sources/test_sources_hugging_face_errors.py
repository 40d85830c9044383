"""What can go wrong between `hf:` and a hub is said with what to do next, and never with the token."""

from __future__ import annotations

import errno
import logging
import socket
from pathlib import Path

import huggingface_hub
import pytest

from helpers.hub_model import TOKEN, locked, source
from helpers.hub_server import REPO, HubServer
from prebake.errors import SourceError
from prebake_build.cache.checkpoints import Cache

ACCESS = (
    "set HF_TOKEN to a token that may read it; in an image build hand it over as a secret, never as a build argument: "
    "--secret id=hf_token,env=HF_TOKEN"
)


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
