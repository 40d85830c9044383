"""What `prebake bake` refuses: the old folder stays, or none is made, and a message says why."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.baking import (
    BERT,
    LINEAR,
    Evil,
    bake,
    declare,
    flip_byte,
    names,
    nothing_is_left,
    prebake,
    tree,
    without_privileges,
)
from prebake.baked.layout import STRUCTURE
from prebake.baked.manifest import File
from prebake.families.family import NAMES

pytestmark = pytest.mark.usefixtures("in_process")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (LINEAR + "dtyp = 3\n", 'FILE: models.m.dtyp: unknown key: did you mean "dtype"?'),
        ('[models.m]\nsource = "path:c"\nclass = "torchy:a:b"\n',
         f'FILE: models.m.class: "torchy" is not a known family (expected one of {", ".join(NAMES)}): did you mean '
         '"torch"?'),
        ('[models.m]\nsource = "path:"\n', 'FILE: models.m.source: "path:" is not of the form "path:FOLDER"'),
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
        2, f"prebake: error: {tmp_path}/models.toml: there is no such file: `prebake scan -- COMMAND` writes one, or "
        "name another with --models\n"
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
    assert "refused: its pickle wants to construct posix.system, and loading that would run code from the file" in err
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
        2, 'prebake: error: models.lock: models.m.source: locked "path:c", but models.toml has "path:d": '
           "run `prebake lock m`\n"
    )  # fmt: skip


def test_a_lock_that_was_named_must_be_there(linear: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = linear.parent / "no.lock"
    code, _, err = bake(capsys, linear, "--lock", named)
    assert (code, err) == (
        2, f"prebake: error: {named}: there is no such file: run `prebake lock --lock {named}`\n"
    )  # fmt: skip
    assert nothing_is_left(linear)


def test_a_failed_bake_leaves_the_old_model_and_those_baked_before(
    linear: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bake(capsys, linear)
    before = tree(linear.parent / "out" / "m")
    declare(linear.parent, LINEAR.replace("models.m", "models.a") + LINEAR + "[models.m.arguments]\nx = 1\n")
    code, _, err = bake(capsys, linear)
    assert (code, "helpers.networks:linear failed: TypeError" in err) == (2, True)
    assert names(linear.parent / "out") == ["a", "m"]
    assert tree(linear.parent / "out" / "m") == before


def test_an_unproven_conversion_is_not_put_in_place(
    linear: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from prebake_build.baking import tensor_files

    honest = tensor_files.write_tensors

    def corrupt(path: Path, tensors: dict[str, torch.Tensor], *others: Any, **named: Any) -> File:
        file = honest(path, tensors, *others, **named)
        flip_byte(path)  # the last one, which is the weight's: bias and weight are aligned alike, so names order them
        return file

    monkeypatch.setattr(tensor_files, "write_tensors", corrupt)
    code, _, err = bake(capsys, linear)
    assert (code, err.splitlines()[-2:]) == (
        1, ["prebake: error: m: mapped, the baked model differs from the ordinary load of its checkpoint:",
            "  weight: 1 of 6 values differ"],
    )  # fmt: skip
    assert nothing_is_left(linear)


def test_too_little_space_is_said_before_anything_is_written(
    bert: Path, small_disk: Callable[[Path, str], Path], capfd: pytest.CaptureFixture[str], processes: None
) -> None:
    assert bake(capfd, bert)[0] == 0
    written = bert.parent / "out" / "m"
    size = sum((written / path).stat().st_size for path in names(written) if path not in ("manifest.json", STRUCTURE))
    assert size > 4096
    output = small_disk(bert.parent / "small", "4k")
    code, _, err = prebake(capfd, "bake", "--models", bert, "--output", output, "--force")
    assert (code, err.splitlines()[-1]) == (
        1, f"prebake: error: {output}: the model m takes {size:,} bytes, and 4,096 are free: free some space, "
           "or name another folder with --output"
    )  # fmt: skip
    assert "bytes of weights" not in err
    assert names(output) == []


def test_a_disk_that_fills_up_meanwhile_leaves_the_old_model(
    bert: Path, small_disk: Callable[[Path, str], Path], capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    output = small_disk(bert.parent / "out", "32k")
    torch.save(torch.nn.Linear(3, 2).state_dict(), bert.parent / "c" / "w.pth")
    linear = declare(bert.parent / "linear", LINEAR.replace("path:c", "path:../l"))
    (bert.parent / "l").mkdir()
    (bert.parent / "c" / "w.pth").rename(bert.parent / "l" / "w.pth")
    assert prebake(capfd, "bake", "--models", linear, "--output", output)[0] == 0
    before = tree(output / "m")
    monkeypatch.setattr("prebake_build.baking.tensor_files.file_size", lambda tensors: 0)
    code, _, err = bake(capfd, bert)
    assert (code, err.splitlines()[-1]) == (
        1, f"prebake: error: {output}: cannot write the model m: No space left on device (0 bytes are free): "
           "free some space, then bake again. The previous folder is unchanged."
    )  # fmt: skip
    assert tree(output / "m") == before
    assert names(output) == ["m"]


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
