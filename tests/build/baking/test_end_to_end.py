"""From a hub to a caption: lock, bake and load through the real client; and what happens where the hub is not there."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.baking import declare, here, prebake, tree
from helpers.hub_server import COMMIT, REPO, HubServer
from image_analyzer.analyzer import Analyzer
from image_analyzer.example import example
from prebake import load
from prebake.baked.manifest import Manifest
from prebake_build.dummies import Dummy, write

TOKEN = "hf_verySecretTokenOfTheTest"
MODELS = f'[models.caption]\nsource = "hf:{REPO}"\ndtype = "float32"\n'


@pytest.fixture(scope="session")
def blip(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a small BLIP as upstream publishes it: weights as a pickle only."""
    folder = tmp_path_factory.mktemp("blip")
    write(Dummy(kind="blip-base", size="tiny"), folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()} | {
        "tf_model.h5": b"tensorflow", "README.md": b"card",
    }  # fmt: skip


@pytest.fixture
def hub(blip: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with HubServer(blip, card={"license": "bsd-3-clause"}, gated=True, token=TOKEN) as server:
        use(monkeypatch, server.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def use(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    # The client waits between its own tries.
    monkeypatch.setattr("time.sleep", lambda seconds: None)


@pytest.fixture
def closed() -> Iterator[str]:
    """The address of a port on which nothing listens; held, so that neither another process nor the client gets it."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


def command(folder: Path, *arguments: object) -> str:
    """The command line as a process of its own; what it printed and logged. Fails where it fails."""
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HF_HOME": str(folder / "hf"), "PREBAKE_CACHE": str(folder / "cache"), "HOME": str(folder / "home")}
    done = subprocess.run(
        [sys.executable, "-m", "prebake", *map(str, arguments)], cwd=folder, env=environment, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_a_gated_pickle_on_the_hub_becomes_a_model_that_speaks_and_the_token_is_nowhere(
    hub: HubServer, tmp_path: Path
) -> None:
    declare(tmp_path, MODELS)
    log = command(tmp_path, "lock") + command(tmp_path, "bake", "--output", "models")
    manifest = Manifest.read(tmp_path / "models" / "caption")
    assert (manifest.class_, manifest.source.to_dict()) == (
        "BlipForConditionalGeneration",
        {"uri": f"hf:{REPO}", "revision": f"commit:{COMMIT}", "licence": "bsd-3-clause"},
    )
    assert {"tf_model.h5", "pytorch_model.bin"}.isdisjoint(file.path for file in manifest.files)
    loaded = load(tmp_path / "models" / "caption")
    assert loaded.tier == "mapped"
    assert Analyzer({"caption": loaded}).caption(example())
    assert TOKEN not in log
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or TOKEN.encode() not in path.read_bytes(), path
    assert not [request for request in hub.cdn.requests if request.authorization]


@pytest.fixture
def locked(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """A `models.toml` with its lock; bakes happen in this process."""
    here(monkeypatch)
    models = declare(tmp_path, MODELS)
    assert prebake(capsys, "lock", "--models", models)[0] == 0
    return models


def bake(capsys: pytest.CaptureFixture[str], models: Path, *arguments: object) -> tuple[int, str]:
    code, _, err = prebake(capsys, "bake", "--models", models, "--output", models.parent / "models", *arguments)
    assert TOKEN not in err
    return code, err


def test_locked_and_cached_a_bake_needs_no_hub(
    hub: HubServer, locked: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, closed: str
) -> None:
    assert bake(capsys, locked)[0] == 0
    before = tree(locked.parent / "models" / "caption")
    asked = len(hub.requests)
    use(monkeypatch, closed)
    assert bake(capsys, locked, "--force")[0] == 0
    assert tree(locked.parent / "models" / "caption") == before
    assert len(hub.requests) == asked


def unreachable(hub: HubServer, closed: str, monkeypatch: pytest.MonkeyPatch) -> str:
    use(monkeypatch, closed)
    return f"hf:{REPO}: cannot reach the hub at {closed}: "


def without_token(hub: HubServer, closed: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    return f"hf:{REPO}: this model is gated, and no token is set: ask for access at {hub.url}/{REPO}, then set HF_TOKEN"


def other_bytes(hub: HubServer, closed: str, monkeypatch: pytest.MonkeyPatch) -> str:
    body = hub.files["pytorch_model.bin"]
    hub.served["pytorch_model.bin"] = body[:-1] + b"x"
    return f"hf:{REPO}: not the files that were promised:\n  pytorch_model.bin: expected sha256 "


def fewer_bytes(hub: HubServer, closed: str, monkeypatch: pytest.MonkeyPatch) -> str:
    hub.served["vocab.txt"] = b"[PAD]\n"
    return f"hf:{REPO}: "


def broken_hub(hub: HubServer, closed: str, monkeypatch: pytest.MonkeyPatch) -> str:
    hub.status = 500
    return f"hf:{REPO}: "


def gone(hub: HubServer, closed: str, monkeypatch: pytest.MonkeyPatch) -> str:
    del hub.files["vocab.txt"]
    return f"hf:{REPO}: a locked file is gone from {hub.url}/{REPO}: run `prebake lock` ("


@pytest.mark.parametrize("trouble", [unreachable, without_token, other_bytes, fewer_bytes, broken_hub, gone])
def test_a_hub_in_trouble_is_told_and_leaves_nothing(
    hub: HubServer, locked: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, closed: str,
    trouble: Any,
) -> None:  # fmt: skip
    message = trouble(hub, closed, monkeypatch)
    code, err = bake(capsys, locked)
    assert (code, err[: len(message) + 16]) == (1, "prebake: error: " + message)
    assert list((locked.parent / "models").iterdir()) == []
    left = [path.name[16:] for path in Path(os.environ["PREBAKE_CACHE"]).rglob("*.tmp")]
    assert left in ([], [".parts.tmp"])  # the files that were complete, for the next attempt


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (f"hf:{REPO}@v9", f'hf:{REPO}@v9: "{REPO}" has no revision "v9": check the branch, tag or commit at '),
        ("hf:acme/tinny", "hf:acme/tinny: "),
    ],
)
def test_what_the_hub_does_not_have_is_told(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, message: str
) -> None:
    models = declare(tmp_path, MODELS.replace(f"hf:{REPO}", source))
    code, err = bake(capsys, models)
    assert (code, err[: len(message) + 16]) == (1, "prebake: error: " + message)
    assert list((tmp_path / "models").iterdir()) == []


def test_all_three_dummies_are_baked_with_what_upstream_calls_them(tiny_models: Path) -> None:
    manifests = {path.name: Manifest.read(path) for path in sorted(tiny_models.iterdir())}
    assert {name: (manifest.family, manifest.class_) for name, manifest in manifests.items()} == {
        "caption": ("transformers", "BlipForConditionalGeneration"),
        "florence": ("transformers", "Florence2ForConditionalGeneration"),
        "ocr": ("easyocr", "Reader"),
    }
    assert json.loads((tiny_models / "florence" / "config.json").read_text())["torch_dtype"] == "float32"
    assert manifests["ocr"].options["languages"] == ["ko", "en"]
    assert manifests["caption"].weights.aliases
