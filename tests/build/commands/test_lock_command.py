"""`prebake lock` writes what upstream has now, tells drift, and touches nothing where it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.hub_server import COMMIT, HubServer
from prebake.__main__ import main as prebake
from prebake.errors import ConfigError
from prebake_build.declared.lock import Lock
from prebake_build.declared.result import Baked

ONE = "1" * 64


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with HubServer({"config.json": b"{}", "model.safetensors": b"weights"}, card={"license": "mit"}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


@pytest.fixture
def workspace(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, hub: HubServer) -> Path:
    """A folder with a `models.toml` of two models, as the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models.toml").write_text(
        '[models.caption]\nsource = "hf:acme/tiny"\n[models.local]\nsource = "path:checkpoint"\n'
    )
    return tmp_path


def test_lock_writes_every_model_and_prints_it(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prebake(["lock"]) == 0
    printed = capsys.readouterr()
    lock = Lock.read(workspace / "models.lock")
    local = lock.models["local"].resolved
    assert local
    assert printed.out == (f"caption  commit:{COMMIT}  2 files, 9 bytes\nlocal  {local.revision}  3 files, 707 bytes\n")
    assert printed.err == "Wrote models.lock.\n"
    caption = lock.models["caption"].resolved
    assert caption
    assert (caption.licence, [file.path for file in caption.files]) == ("mit", ["config.json", "model.safetensors"])


def test_locking_again_changes_nothing(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prebake(["lock"])
    before = (workspace / "models.lock").read_bytes(), (workspace / "models.lock").stat().st_mtime_ns
    capsys.readouterr()
    assert prebake(["lock"]) == 0
    assert capsys.readouterr().err == "models.lock is up to date.\n"
    assert before == ((workspace / "models.lock").read_bytes(), (workspace / "models.lock").stat().st_mtime_ns)


def test_a_named_model_is_resolved_and_the_others_stay(workspace: Path, hub: HubServer) -> None:
    prebake(["lock"])
    hub.commit = "f" * 40
    (workspace / "checkpoint" / "config.json").write_text("[]")
    before = Lock.read(workspace / "models.lock")
    assert prebake(["lock", "caption"]) == 0
    after = Lock.read(workspace / "models.lock")
    assert after.models["local"] == before.models["local"]
    assert after.models["caption"].resolved != before.models["caption"].resolved


def test_an_unknown_name_is_wrong_use(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prebake(["lock", "locale"]) == 2
    assert capsys.readouterr().err == (
        'prebake: error: models.toml: there is no model "locale" (it has caption, local): did you mean "local"?\n'
    )


def test_check_tells_drift_and_writes_nothing(
    workspace: Path, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    prebake(["lock"])
    before = (workspace / "models.lock").read_bytes()
    assert prebake(["lock", "--check"]) == 0
    hub.commit = "f" * 40
    capsys.readouterr()
    assert prebake(["lock", "--check"]) == 1
    printed = capsys.readouterr()
    assert printed.out == f"caption.revision: locked commit:{COMMIT}, now commit:{'f' * 40}\n"
    assert printed.err == (
        "models.lock has drifted: run `prebake lock --models models.toml --lock models.lock` to take this on.\n"
    )
    assert (workspace / "models.lock").read_bytes() == before


def test_check_without_a_lock_is_wrong_use(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prebake(["lock", "--check"]) == 2
    assert (
        capsys.readouterr().err
        == "prebake: error: models.lock: there is no such file: run `prebake lock --lock models.lock`\n"
    )


@pytest.mark.parametrize("damage", [b"<<<<<<< HEAD\n", b"\xff", b"format = 1\nextra = 1\n"])
def test_a_damaged_lock_is_written_anew_if_every_model_is_resolved(
    workspace: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, damage: bytes
) -> None:
    prebake(["lock"])
    path = workspace / "models.lock"
    whole = path.read_bytes()
    path.write_bytes(damage)
    for arguments in (["lock", "caption"], ["lock", "--check"], ["lock", "--upgrade", "caption"]):
        capsys.readouterr()
        assert prebake(arguments) == 1
        assert capsys.readouterr().err.endswith(
            ": `prebake lock --lock models.lock` writes it anew, or restore it from version control\n"
        )
        assert path.read_bytes() == damage
    assert prebake(["lock", "--lock", "models.lock"]) == 0
    assert path.read_bytes() == whole
    (message,) = (record.getMessage() for record in caplog.records if record.name == "prebake_build.commands.lock")
    assert message.startswith("models.lock: ")
    assert message.endswith(": writing it anew, without what `prebake bake --record` wrote into it")


def test_a_newer_lock_is_kept_until_it_is_removed(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workspace / "models.lock").write_text("format = 2\n")
    assert prebake(["lock"]) == 1
    assert capsys.readouterr().err == (
        "prebake: error: models.lock: format: this lock has format 2, but this Prebake reads up to 1: install the "
        "prebake-build that wrote it, or remove the file and run `prebake lock --lock models.lock`\n"
    )
    assert (workspace / "models.lock").read_text() == "format = 2\n"


def test_what_cannot_be_resolved_leaves_the_lock_untouched(
    workspace: Path, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    prebake(["lock"])
    before = (workspace / "models.lock").read_bytes()
    hub.status = 500
    (workspace / "checkpoint" / "link").symlink_to("x")
    capsys.readouterr()
    assert prebake(["lock"]) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"prebake: error: models.caption: hf:acme/tiny: {hub.url} answers 500: ")
    assert "\nmodels.local: path:checkpoint: " in message
    assert message.endswith(
        "\nThe lock was not changed. `prebake lock --allow-unresolved` keeps or marks what cannot be resolved, "
        "and writes the rest.\n"
    )
    assert (workspace / "models.lock").read_bytes() == before


def test_allow_unresolved_writes_the_reason_and_what_is_known(
    workspace: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (workspace / "models.toml").open("a") as file:
        file.write('[models.ocr]\nsource = "easyocr:ko+en"\n')
    hub.status = 404
    monkeypatch.setenv("EASYOCR_MIRROR", hub.url)
    assert prebake(["lock", "--allow-unresolved"]) == 0
    lock = Lock.read(workspace / "models.lock")
    assert lock.models["local"].resolved
    assert (lock.models["caption"].unresolved or "").startswith(f"hf:acme/tiny: {hub.url} answers 404")
    assert [known.member for known in lock.models["ocr"].upstream] == ["craft_mlt_25k.pth", "korean_g2.pth"]
    with pytest.raises(ConfigError, match=r"models\.ocr is unresolved: "):
        lock.require("ocr", "easyocr:ko+en")


def test_allow_unresolved_keeps_what_was_locked(workspace: Path, hub: HubServer) -> None:
    prebake(["lock"])
    before = (workspace / "models.lock").read_bytes()
    hub.status = 500
    assert prebake(["lock", "--allow-unresolved"]) == 0
    assert (workspace / "models.lock").read_bytes() == before
    assert prebake(["lock", "--check", "--allow-unresolved"]) == 0


def test_what_was_baked_is_kept_until_the_source_changes(workspace: Path, hub: HubServer) -> None:
    prebake(["lock"])
    path = workspace / "models.lock"
    baked = Baked(converter={"prebake": "0.1.0"}, set_digest=f"sha256:{ONE}")
    Lock.read(path).with_baked("caption", baked).write(path)
    prebake(["lock"])
    assert Lock.read(path).models["caption"].baked == baked
    hub.files["config.json"] = b"[]"
    prebake(["lock"])
    assert Lock.read(path).models["caption"].baked is None


def test_a_model_that_left_models_toml_leaves_the_lock(workspace: Path) -> None:
    prebake(["lock"])
    (workspace / "models.toml").write_text('[models.local]\nsource = "path:checkpoint"\n')
    assert prebake(["lock", "--check"]) == 1
    prebake(["lock"])
    assert list(Lock.read(workspace / "models.lock").models) == ["local"]


def test_a_lock_that_cannot_be_written(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prebake(["lock", "--lock", "none/models.lock"]) == 2
    assert capsys.readouterr().err == (
        "prebake: error: none/models.lock: cannot be written: No such file or directory\n"
    )


def test_the_token_is_not_in_the_lock(
    workspace: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    token = "hf_verySecretTokenOfTheTest"
    monkeypatch.setenv("HF_TOKEN", token)
    hub.gated, hub.token = True, "another"
    assert prebake(["lock", "--allow-unresolved"]) == 0
    printed = capsys.readouterr()
    assert "gated" in (workspace / "models.lock").read_text()
    assert token not in printed.out + printed.err + (workspace / "models.lock").read_text()


# --- upgrade -----------------------------------------------------------------------------------------------------

PINNED = f"""\
# our models
[models.caption]   # captions
source = "hf:acme/tiny@{COMMIT}"  # pinned by hand
[models.local]
source = 'path:checkpoint'
"""


@pytest.mark.parametrize("name", ["", "@v1"])
def test_upgrade_replaces_a_pinned_commit_in_both_files_and_keeps_the_rest_of_the_text(
    workspace: Path, hub: HubServer, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    hub.branches = ("v1",) if name else ("main",)
    pinned = PINNED.replace("@", f"{name}@")
    (workspace / "models.toml").write_text(pinned)
    prebake(["lock"])
    (workspace / "checkpoint" / "config.json").write_text("[]")
    before = Lock.read(workspace / "models.lock")
    hub.commit = "f" * 40
    capsys.readouterr()
    assert prebake(["lock", "--upgrade", "caption"]) == 0
    assert capsys.readouterr().err.splitlines()[0] == (
        f"models.toml: models.caption.source: hf:acme/tiny{name}@{COMMIT} -> hf:acme/tiny{name}@{'f' * 40}"
    )
    assert (workspace / "models.toml").read_text() == pinned.replace(COMMIT, "f" * 40)
    after = Lock.read(workspace / "models.lock")
    resolved = after.models["caption"].resolved
    assert resolved and resolved.revision == f"commit:{'f' * 40}"
    assert after.models["local"] == before.models["local"]


def test_upgrade_of_what_pins_no_commit_resolves_it_anew_and_changes_no_declaration(
    workspace: Path, hub: HubServer
) -> None:
    prebake(["lock"])
    text = (workspace / "models.toml").read_bytes()
    hub.commit = "f" * 40
    assert prebake(["lock", "--upgrade", "caption"]) == 0
    resolved = Lock.read(workspace / "models.lock").models["caption"].resolved
    assert resolved and resolved.revision == f"commit:{'f' * 40}"
    assert (workspace / "models.toml").read_bytes() == text


def test_upgrade_where_the_text_does_not_have_the_source_says_what_to_write(
    workspace: Path, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    (workspace / "models.toml").write_text(f'[models.caption]\nsource = "hf:acme/\\u0074iny@{COMMIT}"\n')
    prebake(["lock"])
    hub.commit = "f" * 40
    capsys.readouterr()
    assert prebake(["lock", "--upgrade", "caption"]) == 2
    assert capsys.readouterr().err == (
        "prebake: error: models.toml: models.caption.source: cannot be replaced in this file: write it yourself: "
        f'source = "hf:acme/tiny@{"f" * 40}"\n'
    )


def test_upgrade_names_its_own_models(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prebake(["lock", "local", "--upgrade", "caption"]) == 2
    assert capsys.readouterr().err == (
        "prebake: error: --upgrade: cannot be combined with --check or names (it names its own models)\n"
    )
