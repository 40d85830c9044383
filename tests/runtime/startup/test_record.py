"""`prebake bake --record` joins the two ends of the chain in the lock."""

from __future__ import annotations

from pathlib import Path

import pytest

from prebake.__main__ import main
from prebake.baked.manifest import Manifest
from prebake_build.declared.lock import Lock, LockedModel

TINY = '[models.caption]\nsource = "dummy:blip-base?size=tiny"\nclass = "transformers:BlipForConditionalGeneration"\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "models.toml").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_lock_names_what_came_out(folder: Path) -> None:
    assert main(["lock"]) == 0
    assert main(["bake", "--output", "out", "--record"]) == 0
    lock, manifest = Lock.read(folder / "models.lock"), Manifest.read(folder / "out" / "caption")
    baked = lock.models["caption"].baked
    assert baked is not None
    assert (baked.set_digest, dict(baked.converter)) == (manifest.set_digest, dict(manifest.converter))
    assert lock.text == (folder / "models.lock").read_text()
    assert main(["lock", "--check"]) == 0


def test_without_a_lock_there_is_nothing_to_record_in(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bake", "--output", "out", "--record"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "prebake: error: models.lock: there is no lock to record the result in: run `prebake lock` first"
    )


def test_what_the_lock_could_not_resolve_is_resolved_now_and_said(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = "dummy:blip-base?size=tiny"
    Lock(models={"caption": LockedModel(source=source, unresolved="no hub")}).write(folder / "models.lock")
    assert main(["bake", "--output", "out"]) == 0
    assert Manifest.read(folder / "out" / "caption").source.uri == source
    said = f"[1/1] caption: not locked: resolving {source} now (prebake lock would pin it)"
    assert said in [record.getMessage() for record in caplog.records]
