"""The environment of a command below `prebake run`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from helpers.adopted import COMMIT
from helpers.runtime_fakes import manifest_of, write_manifest
from prebake.adopt.launch import HUB, SITE, environment
from prebake.baked import hub
from prebake.baked.manifest import Source
from prebake.baked.model import find_models
from prebake.errors import ConfigError, DocumentError

ROOT = {"PREBAKE_ROOT": "/nonexistent"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    source = Source(uri="hf:acme/tiny", revision=f"commit:{COMMIT}")
    write_manifest(tmp_path / "models", manifest_of("tiny", source=source))
    return tmp_path / "models"


@pytest.fixture
def offline(root: Path, tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path), "PREBAKE_ROOT": str(root), "HF_HUB_OFFLINE": "1"}


def test_the_path_is_extended() -> None:
    assert environment(ROOT)["PYTHONPATH"] == str(SITE)
    given = ROOT | {"PYTHONPATH": "/app:/lib"}
    assert environment(given)["PYTHONPATH"] == f"{SITE}:/app:/lib"


def test_each_run_is_a_service_of_its_own() -> None:
    one, other = environment(ROOT)["PREBAKE_SERVICE"], environment(ROOT)["PREBAKE_SERVICE"]
    assert one != other and len(one) == 16


def test_off_adds_nothing() -> None:
    given = ROOT | {"PREBAKE": "0", "PYTHONPATH": "/app"}
    assert environment(given, strict=True, report="file") == given


def test_options_become_variables(root: Path) -> None:
    added = environment({"HF_HUB_CACHE": "/c"}, root=root, strict=True, report="127.0.0.1:9400")
    assert {name: added[name] for name in added if name not in ("PYTHONPATH", "PREBAKE_SERVICE")} == {
        "HF_HUB_CACHE": "/c",
        "HF_HUB_OFFLINE": "1",
        "PREBAKE_ROOT": str(root),
        "PREBAKE_STRICT": "1",
        "PREBAKE_REPORT": "127.0.0.1:9400",
    }


@pytest.mark.parametrize("given", ["run/report", "unix:run/socket"])
def test_paths_hold_in_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.chdir(tmp_path)
    absolute = given.replace("run/", f"{tmp_path}/run/")
    for added in (
        environment({"PREBAKE_ROOT": "models"}, report=given),
        environment({"PREBAKE_REPORT": given}, root=Path("models")),
    ):
        assert (added["PREBAKE_ROOT"], added["PREBAKE_REPORT"]) == (f"{tmp_path}/models", absolute)


def test_strict_without_models_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        environment({}, root=tmp_path, strict=True)
    assert str(caught.value) == (
        f"{tmp_path}: holds no baked model, and --strict refuses all others (set PREBAKE_ROOT or --root)"
    )


def test_offline_the_cache_of_the_hub_is_the_view(offline: dict[str, str]) -> None:
    cache = Path(environment(offline)["HF_HUB_CACHE"])
    assert (cache / "models--acme--tiny" / "refs" / "main").read_text() == COMMIT
    snapshot = cache / "models--acme--tiny" / "snapshots" / COMMIT
    assert os.path.realpath(snapshot / "model.safetensors") == f"{offline['PREBAKE_ROOT']}/tiny/model.safetensors"


def test_the_view_beside_the_models_is_found_without_reading_them(offline: dict[str, str]) -> None:
    assert HUB == hub.FOLDER
    root = Path(offline["PREBAKE_ROOT"])
    (root / HUB).mkdir()
    hub.write(hub.view_of(find_models(root)), root / HUB, "..")
    (root / "tiny" / "manifest.json").write_text("{")
    assert environment(offline)["HF_HUB_CACHE"] == str(root / HUB)
    assert environment(offline | {"PREBAKE_STRICT": "1"})["HF_HUB_CACHE"] == str(root / HUB)
    with pytest.raises(DocumentError):  # its signature must be checked, and so it is read
        environment(offline | {"PREBAKE_VERIFY_KEY": "/key"})


@pytest.mark.parametrize("damage", ["no link", "a broken link", "copied as a file", "no commit", "empty"])
def test_a_view_that_has_lost_its_links_is_made_anew(offline: dict[str, str], damage: str) -> None:
    root = Path(offline["PREBAKE_ROOT"])
    (root / HUB).mkdir()
    hub.write(hub.view_of(find_models(root)), root / HUB, "..")
    repository = root / HUB / "models--acme--tiny"
    link = repository / "snapshots" / COMMIT / "model.safetensors"
    if damage == "empty":
        shutil.rmtree(repository)
    elif damage == "no commit":
        shutil.rmtree(repository / "snapshots")
    else:
        link.unlink()
    if damage == "a broken link":
        link.symlink_to("../nowhere")
    elif damage == "copied as a file":
        link.write_text("../../../../tiny/model.safetensors")
    made = Path(environment(offline)["HF_HUB_CACHE"])
    assert made != root / HUB
    assert (made / "models--acme--tiny" / "snapshots" / COMMIT / "model.safetensors").samefile(
        root / "tiny" / "model.safetensors"
    )


def test_online_nothing_is_read(root: Path) -> None:
    (root / "tiny" / "manifest.json").write_text("{")
    assert "HF_HUB_CACHE" not in environment({"PREBAKE_ROOT": str(root)})


def test_online_the_cache_of_the_hub_stays(offline: dict[str, str]) -> None:
    assert "HF_HUB_CACHE" not in environment(offline | {"HF_HUB_OFFLINE": "0"})


def test_a_named_cache_stays(offline: dict[str, str]) -> None:
    assert environment(offline | {"HF_HUB_CACHE": "/mine"})["HF_HUB_CACHE"] == "/mine"


@pytest.mark.parametrize("home", ["HOME", "HF_HOME", "XDG_CACHE_HOME"])
def test_a_cache_with_models_stays(offline: dict[str, str], tmp_path: Path, home: str) -> None:
    below = {"HOME": ".cache/huggingface/hub", "HF_HOME": "hub", "XDG_CACHE_HOME": "huggingface/hub"}[home]
    (tmp_path / "other" / below / "models--acme--other").mkdir(parents=True)
    given = offline | {home: str(tmp_path / "other")}
    assert "HF_HUB_CACHE" not in environment(given)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("0.0.0.0:9400", 'a report is for this machine alone: expected 127.0.0.1:9400 (for others, '
         "prebake.middleware answers in the application)"),
        ("127.0.0.1:70000", "70000 is not a port (1 to 65535)"),
        ("unix:", "expected a path of 1 to 100 bytes after unix:"),
        ("reports/", "expected a file, unix:PATH, or 127.0.0.1:PORT"),
    ],
)  # fmt: skip
def test_a_wrong_address_is_refused(address: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        environment(ROOT, report=address)
    assert str(caught.value) == f'--report: "{address}": {message}'
