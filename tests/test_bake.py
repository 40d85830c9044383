"""`prebake bake`: the right folder, the old one, or none; and a message that says why."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from baking import TESTS, Evil, declare, flip_byte, here, names, prebake, save, tiny, tree, without_privileges
from prebake.errors import PrebakeError
from prebake.manifest import File, Manifest
from prebake_build import bake as baker
from prebake_build.bake import WITHHELD, recipe_digest
from prebake_build.sources import Resolved
from prebake_build.spec import ModelSpec

LINEAR = '[models.m]\nsource = "path:c"\nclass = "torch:networks:linear"\n'
BERT = '[models.m]\nsource = "path:c"\n'


@pytest.fixture(autouse=True)
def _in_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    if "processes" not in request.fixturenames:
        here(monkeypatch)


@pytest.fixture
def processes() -> None:
    """For tests where the worker's process is the point."""


@pytest.fixture
def linear(tmp_path: Path) -> Path:
    """A `models.toml` with one model `m`, a layer of six weights."""
    torch.manual_seed(5)
    (tmp_path / "c").mkdir()
    torch.save(torch.nn.Linear(3, 2).state_dict(), tmp_path / "c" / "w.pth")
    return declare(tmp_path, LINEAR)


@pytest.fixture(scope="module")
def bert_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tiny("BertForMaskedLM"), tmp_path_factory.mktemp("bert") / "c", "pickle")


@pytest.fixture
def bert(tmp_path: Path, bert_checkpoint: Path) -> Path:
    shutil.copytree(bert_checkpoint, tmp_path / "c")
    return declare(tmp_path, BERT)


def bake(capsys: pytest.CaptureFixture[str], models: Path, *arguments: object) -> tuple[int, str, str]:
    return prebake(capsys, "bake", "--models", models, "--output", models.parent / "out", *arguments)


def nothing_is_left(models: Path) -> bool:
    output = models.parent / "out"
    return not output.exists() or names(output) == []


# --- what it makes -----------------------------------------------------------------------------------------------


def test_a_model_is_baked_and_told(linear: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = bake(capsys, linear)
    manifest = Manifest.read(linear.parent / "out" / "m")
    assert (code, out) == (0, f"m  {manifest.set_digest}  32 bytes\n")
    assert names(linear.parent / "out" / "m") == ["manifest.json", "model.safetensors"]


def test_what_was_baked_is_told_as_json(linear: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = bake(capsys, linear, "--json")
    folder = linear.parent / "out" / "m"
    assert code == 0
    assert json.loads(out) == [{"name": "m", "folder": str(folder), "set_digest": Manifest.read(folder).set_digest}]


def test_only_the_named_models_are_baked(linear: Path, capsys: pytest.CaptureFixture[str]) -> None:
    declare(linear.parent, LINEAR + LINEAR.replace("models.m", "models.other"))
    assert bake(capsys, linear, "other")[0] == 0
    assert names(linear.parent / "out") == ["other"]


def test_the_manifest_has_what_models_toml_declares(linear: Path, capsys: pytest.CaptureFixture[str]) -> None:
    declare(linear.parent, LINEAR + "retries = 3\ntimeout = 7.5\nrequired = false\n")
    assert bake(capsys, linear)[0] == 0
    manifest = Manifest.read(linear.parent / "out" / "m")
    assert manifest.loading.to_dict() == {"retries": 3, "timeout": 7.5, "required": False}
    assert (manifest.family, manifest.class_, manifest.source.uri) == ("torch", "networks:linear", "path:c")
    assert manifest.source.revision.startswith("sha256:")


def test_baking_twice_gives_the_same_bytes_modes_and_times(bert: Path) -> None:
    models = bert
    for output, seed in (("one", "0"), ("two/deep", "1")):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PREBAKE_CACHE": str(models.parent / f"cache-{seed}")}
        subprocess.run(
            [sys.executable, "-m", "prebake", "bake", "--models", str(models), "--output", output],
            cwd=models.parent, env=environment, check=True, capture_output=True, umask=0o077 if seed == "1" else 0o022,
        )  # fmt: skip
    one = tree(models.parent / "one" / "m")
    assert one == tree(models.parent / "two" / "deep" / "m")
    assert {mtime for _, mtime, _ in one.values()} == {0}


def test_a_model_that_is_up_to_date_is_left_alone(
    linear: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    bake(capsys, linear)
    folder = linear.parent / "out" / "m"
    before = folder.stat().st_ino
    caplog.set_level("INFO")
    code, out, _ = bake(capsys, linear)
    assert (code, folder.stat().st_ino) == (0, before)
    assert "[1/1] m: up to date" in caplog.messages
    assert out.startswith("m  sha256:")


def test_force_bakes_again_what_is_up_to_date(linear: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bake(capsys, linear)
    folder = linear.parent / "out" / "m"
    before, content = folder.stat().st_ino, tree(folder)
    assert bake(capsys, linear, "--force")[0] == 0
    assert folder.stat().st_ino != before
    assert tree(folder) == content


@pytest.mark.parametrize("file", ["model.safetensors", "manifest.json"])
@pytest.mark.parametrize("damage", [Path.unlink, lambda path: os.truncate(path, 10)], ids=["missing", "truncated"])
def test_a_damaged_folder_is_baked_again_or_refused(
    linear: Path, capsys: pytest.CaptureFixture[str], file: str, damage: Any
) -> None:
    bake(capsys, linear)
    folder = linear.parent / "out" / "m"
    before = tree(folder)
    damage(folder / file)
    code, _, err = bake(capsys, linear)
    if (folder / "manifest.json").exists():
        assert (code, tree(folder)) == (0, before)
    else:
        assert (code, "is in the way and no baked model" in err) == (2, True)


@pytest.mark.parametrize(
    "change",
    ["retries = 1", "timeout = 3", "required = false", 'dtype = "float16"', "arguments = {}"],
)
def test_a_changed_option_means_a_new_bake(linear: Path, capsys: pytest.CaptureFixture[str], change: str) -> None:
    bake(capsys, linear)
    folder = linear.parent / "out" / "m"
    before = folder.stat().st_ino
    declare(linear.parent, LINEAR + change + "\n")
    assert bake(capsys, linear)[0] == 0
    assert (folder.stat().st_ino == before) == (change == "arguments = {}")


def test_a_changed_checkpoint_means_a_new_bake(linear: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bake(capsys, linear)
    digest = Manifest.read(linear.parent / "out" / "m").set_digest
    torch.save(torch.nn.Linear(3, 2).state_dict(), linear.parent / "c" / "w.pth")
    assert bake(capsys, linear)[0] == 0
    assert Manifest.read(linear.parent / "out" / "m").set_digest != digest


def test_every_part_of_what_a_manifest_says_is_in_the_recipe() -> None:
    model = ModelSpec(name="m", source="path:c", arguments={})
    resolved = Resolved(revision="commit:1", files=())
    known = {recipe_digest(model, resolved)}
    changes: dict[str, Any] = {"class_": "X", "dtype": "float16", "quantize": False, "arguments": {"a": 1}}
    for changed in (
        recipe_digest(model, replace(resolved, revision="commit:2")),
        recipe_digest(model, replace(resolved, licence="mit")),
        *(recipe_digest(replace(model, **{key: value}), resolved) for key, value in changes.items()),
    ):
        assert changed not in known
        known.add(changed)


# --- what it refuses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (LINEAR + "dtyp = 3\n", 'FILE: models.m.dtyp: unknown key: did you mean "dtype"?'),
        ('[models.m]\nsource = "path:c"\nclass = "torchy:a:b"\n',
         'FILE: models.m.class: "torchy" is no known family (expected one of transformers, easyocr, torch): did you '
         'mean "torch"?'),
        ('[models.m]\nsource = "ftp:c"\n',
         'FILE: models.m.source: "ftp:c" has no known scheme (expected one of hf:, easyocr:, url:, path:, dummy:)'),
        ('[models.m]\nsource = "path:c"\ndtype = "float31"\n',
         'FILE: models.m.dtype: "float31" is not one of float32, bfloat16, float16, source: did you mean "float32"?'),
        ("[models]\n", "FILE: models: is empty (expected a table [models.NAME] for each model)"),
    ],
    ids=["key", "family", "scheme", "dtype", "empty"],
)  # fmt: skip
def test_a_wrong_models_toml_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, expected: str
) -> None:
    models = declare(tmp_path, text)
    code, out, err = bake(capsys, models)
    assert (code, out, err) == (2, "", f"prebake: error: {expected.replace('FILE', str(models))}\n")
    assert nothing_is_left(models)


def test_a_name_that_is_not_declared_is_refused(linear: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = bake(capsys, linear, "n")
    assert (code, err) == (2, f'prebake: error: {linear}: there is no model "n" (it has m)\n')
    assert nothing_is_left(linear)


def test_a_models_file_that_is_not_there_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = bake(capsys, tmp_path / "models.toml")
    assert (code, err) == (
        2, f"prebake: error: {tmp_path}/models.toml: there is no such file: write one, or name another with --models\n"
    )  # fmt: skip


def test_a_family_that_cannot_be_inferred_is_asked_for(linear: Path, capsys: pytest.CaptureFixture[str]) -> None:
    declare(linear.parent, BERT)
    code, _, err = bake(capsys, linear)
    assert (code, err) == (
        2, "prebake: error: models.m.class: cannot be inferred, since the checkpoint has no config.json: "
           'add class = "torch:package.module:factory"\n'
    )  # fmt: skip
    assert nothing_is_left(linear)


def test_an_adapter_is_refused_though_nobody_named_its_class(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "adapter_config.json").write_text("{}")
    models = declare(tmp_path, BERT)
    code, _, err = bake(capsys, models)
    assert (code, "models.m.source: this is an adapter, not a model" in err) == (2, True)
    assert nothing_is_left(models)


def test_a_class_that_transformers_lacks_is_refused(bert: Path, capsys: pytest.CaptureFixture[str]) -> None:
    declare(bert.parent, BERT + 'class = "transformers:BertForImages"\n')
    code, _, err = bake(capsys, bert)
    assert code == 2
    assert err.startswith("m: loading the checkpoint as its framework does\nprebake: error: models.m.class: transform")
    assert nothing_is_left(bert)


@pytest.mark.parametrize(("family", "file"), [("transformers", "pytorch_model.bin"), ("torch", "w.pth")])
def test_a_malicious_pickle_is_refused_and_not_run(
    bert: Path, capfd: pytest.CaptureFixture[str], processes: None, family: str, file: str
) -> None:
    proof = bert.parent / "proof"
    if family == "torch":
        shutil.rmtree(bert.parent / "c")
        (bert.parent / "c").mkdir()
        declare(bert.parent, LINEAR)
    torch.save({"x": Evil(proof)}, bert.parent / "c" / file)
    code, _, err = bake(capfd, bert)
    assert code == 1
    assert (
        "refused: its pickle wants to construct posix.system, and loading that would run code of whoever wrote it"
        in err
    )
    assert not proof.exists()
    assert nothing_is_left(bert)


def test_a_checkpoint_that_lacks_weights_is_refused(bert: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = torch.load(bert.parent / "c" / "pytorch_model.bin", weights_only=True)
    state.pop("bert.embeddings.position_embeddings.weight")
    torch.save(state, bert.parent / "c" / "pytorch_model.bin")
    code, _, err = bake(capsys, bert)
    assert code == 1
    assert 'the checkpoint lacks "bert.embeddings.position_embeddings.weight", which BertForMaskedLM would fill' in err
    assert nothing_is_left(bert)


def test_a_checkpoint_that_is_not_what_was_locked_is_refused(linear: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prebake(capsys, "lock", "--models", linear)[0] == 0
    flip_byte(linear.parent / "c" / "w.pth")
    code, _, err = bake(capsys, linear)
    assert code == 1
    assert err.startswith("prebake: error: path:c: not the files that were promised:\n  w.pth: expected sha256 ")
    assert nothing_is_left(linear)


def test_a_lock_of_another_source_is_refused(linear: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prebake(capsys, "lock", "--models", linear)[0] == 0
    declare(linear.parent, LINEAR.replace("path:c", "path:d"))
    code, _, err = bake(capsys, linear)
    assert (code, err) == (
        2, 'prebake: error: models.lock: models.m.source: locked "path:c", and models.toml has "path:d": '
           "run `prebake lock m`\n"
    )  # fmt: skip


def test_a_lock_that_was_named_must_be_there(linear: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = bake(capsys, linear, "--lock", linear.parent / "no.lock")
    assert code in (1, 2)
    assert "no.lock" in err
    assert nothing_is_left(linear)


def test_a_failed_bake_leaves_the_old_model_and_those_baked_before(
    linear: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bake(capsys, linear)
    before = tree(linear.parent / "out" / "m")
    declare(linear.parent, LINEAR.replace("models.m", "models.a") + LINEAR + "[models.m.arguments]\nx = 1\n")
    code, _, err = bake(capsys, linear)
    assert (code, "networks:linear failed: TypeError" in err) == (2, True)
    assert names(linear.parent / "out") == ["a", "m"]
    assert tree(linear.parent / "out" / "m") == before


def test_an_unproven_conversion_is_not_put_in_place(
    linear: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from prebake_build import writer

    honest = writer.write_tensors

    def corrupt(path: Path, tensors: dict[str, torch.Tensor]) -> File:
        file = honest(path, tensors)
        flip_byte(path)
        return file

    monkeypatch.setattr(writer, "write_tensors", corrupt)
    code, _, err = bake(capsys, linear)
    assert (code, err.splitlines()[-2:]) == (
        1, ["prebake: error: m: mapped, the baked model differs from the ordinary load of its checkpoint:",
            "  bias: 1 of 2 values differ"] if "bias" in err else
           ["prebake: error: m: mapped, the baked model differs from the ordinary load of its checkpoint:",
            "  weight: 1 of 6 values differ"],
    )  # fmt: skip
    assert nothing_is_left(linear)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "out"
    folder.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(folder)], capture_output=True
        ).returncode
    ):
        pytest.skip("cannot mount a small file system here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_said_and_leaves_the_old_model(
    bert: Path, small_disk: Path, capfd: pytest.CaptureFixture[str], processes: None
) -> None:
    torch.save(torch.nn.Linear(3, 2).state_dict(), bert.parent / "c" / "w.pth")
    linear = declare(bert.parent / "linear", LINEAR.replace("path:c", "path:../l"))
    (bert.parent / "l").mkdir()
    (bert.parent / "c" / "w.pth").rename(bert.parent / "l" / "w.pth")
    assert prebake(capfd, "bake", "--models", linear, "--output", small_disk)[0] == 0
    before = tree(small_disk / "m")
    code, _, err = bake(capfd, bert)
    assert code == 1
    assert f"prebake: error: {small_disk}: cannot write the model m: No space left on device (" in err
    assert err.endswith("free some space, then bake again. What stood there before is unchanged.\n")
    assert tree(small_disk / "m") == before
    assert names(small_disk) == ["m"]


def test_an_output_that_may_not_be_written_to_is_refused(linear: Path) -> None:
    output = linear.parent / "out"
    output.mkdir()
    output.chmod(0o555)
    done = without_privileges("bake", "--models", linear, "--output", output)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        2, f"prebake: error: {output}: cannot write the model m: Permission denied"
    )  # fmt: skip


def test_a_checkpoint_that_may_not_be_read_is_refused(linear: Path) -> None:
    (linear.parent / "c" / "w.pth").chmod(0)
    done = without_privileges("bake", "--models", linear, "--output", linear.parent / "out")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        1, f"prebake: error: path:c: cannot read {linear.parent}/c/w.pth: Permission denied"
    )  # fmt: skip
    assert nothing_is_left(linear)


# --- the worker's process ----------------------------------------------------------------------------------------


def test_the_worker_gets_no_token_and_no_network_settings(
    linear: Path, monkeypatch: pytest.MonkeyPatch, processes: None
) -> None:
    for name in WITHHELD:
        monkeypatch.setenv(name, "secret")
    seen: dict[str, str] = {}

    def run(*_: Any, env: dict[str, str], **__: Any) -> subprocess.CompletedProcess[str]:
        seen.update(env)
        return subprocess.CompletedProcess([], 0, stdout="{}")

    monkeypatch.setattr("subprocess.run", run)
    baker._work(_any_job())
    assert "secret" not in seen.values()
    assert (seen["HF_HUB_OFFLINE"], seen["PATH"]) == ("1", os.environ["PATH"])


def _any_job() -> Any:
    from prebake_build.worker import Job

    return Job(name="m", family="torch", class_=None, dtype="source", options={}, loading={}, source={}, recipe="",
               checkpoint="", folder="")  # fmt: skip


@pytest.mark.parametrize(
    ("code", "out", "message"),
    [
        (-9, "", "models.m: the worker ended with signal 9 (killed, perhaps for want of memory); its last words stand "
                 "above"),
        (-11, "", "models.m: the worker ended with signal 11; its last words stand above"),
        (3, "", "models.m: the worker ended with exit code 3; its last words stand above"),
        (0, "", "models.m: the worker ended with exit code 0; its last words stand above"),
        (0, '{"error": "Unheard", "message": "what"}', "what"),
    ],
)  # fmt: skip
def test_a_worker_that_dies_is_told(
    monkeypatch: pytest.MonkeyPatch, processes: None, code: int, out: str, message: str
) -> None:
    done = subprocess.CompletedProcess([], code, stdout=out)
    monkeypatch.setattr("subprocess.run", lambda *_, **__: done)
    with pytest.raises(PrebakeError) as caught:
        baker._work(_any_job())
    assert str(caught.value) == message


SLOW = """
import os, signal, sys, time
import torch
def linear():
    open(os.environ["STARTED"], "w").close()
    time.sleep(float(os.environ["PAUSE"]))
    return torch.nn.Linear(3, 2)
"""


def killed_bake(models: Path, pause: str, when: Any) -> None:
    """A bake whose whole process group is killed once `when()` holds."""
    environment = {**os.environ, "PYTHONPATH": str(models.parent), "STARTED": str(models.parent / "started"),
                   "PAUSE": pause}  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "prebake", "bake", "--models", str(models), "--force",
         "--output", str(models.parent / "out")],
        env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while process.poll() is None and not when():
        time.sleep(0.001)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize("old", [False, True], ids=["first bake", "second bake"])
@pytest.mark.parametrize("moment", ["work folder", "factory", "weights", "manifest"])
def test_killed_at_any_moment_the_output_is_the_old_model_or_the_new_one(
    linear: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, old: bool, moment: str,
    processes: None,
) -> None:  # fmt: skip
    (linear.parent / "slow.py").write_text(SLOW)
    declare(linear.parent, LINEAR.replace("networks", "slow"))
    monkeypatch.setenv("PYTHONPATH", str(linear.parent))
    monkeypatch.setenv("STARTED", "/dev/null")
    monkeypatch.setenv("PAUSE", "0")
    output = linear.parent / "out"
    before = None
    if old:
        here(monkeypatch)
        monkeypatch.syspath_prepend(str(linear.parent))
        monkeypatch.delitem(sys.modules, "slow", raising=False)
        assert bake(capsys, linear)[0] == 0
        before = tree(output / "m")
    found = {
        "work folder": lambda: any(output.glob(".baking-m.*")),
        "factory": (linear.parent / "started").exists,
        "weights": lambda: any(output.glob(".baking-m.*/m/model.safetensors")),
        "manifest": lambda: any(output.glob(".baking-m.*/m/manifest.json")),
    }[moment]
    killed_bake(linear, "30" if moment == "factory" else "0", found)
    if (output / "m").exists():
        baked = tree(output / "m")
        assert old or moment == "manifest"
        assert before in (None, baked)  # the second bake gives the same bytes: both are whole
    assert prebake(capsys, "bake", "--models", linear, "--output", output, "m")[0] == 0
    assert names(output) == ["m"]
    assert prebake(capsys, "verify", output)[0] == 0


def test_leftovers_are_cleared_though_the_model_is_up_to_date(linear: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bake(capsys, linear)
    (linear.parent / "out" / ".baking-m.x" / "m").mkdir(parents=True)
    assert bake(capsys, linear)[0] == 0
    assert names(linear.parent / "out") == ["m"]
