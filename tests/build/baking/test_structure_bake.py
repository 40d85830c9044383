"""A bake keeps the structure of a module that reads back as it was, and of no other."""

from __future__ import annotations

import json
import shutil
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

from helpers.baking import job, load_by, names, torch_job
from helpers.networks import Tagger
from prebake.baked import layout
from prebake.modules import structure
from prebake_build.baking.worker import run

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def test_users_own_code_has_none(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    torch.save(Tagger().state_dict(), tmp_path / "checkpoint" / "weights.pth")
    run(torch_job(tmp_path / "checkpoint", tmp_path / "tagger", "helpers.networks:tagger"))
    assert json.loads((tmp_path / "tagger" / "manifest.json").read_text())["structure"] is None
    assert layout.STRUCTURE not in names(tmp_path / "tagger")
    assert load_by(tmp_path / "tagger")[1] == "constructor"


def test_a_module_with_a_closure_is_baked_without(
    baked_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import BertForMaskedLM

    plain = BertForMaskedLM.__init__

    def with_closure(self: Any, config: Any) -> None:
        plain(self, config)
        self.scale = lambda value: value

    monkeypatch.setattr(BertForMaskedLM, "__init__", with_closure)
    run(job(baked_bert.parent / "checkpoint", tmp_path / "bert"))
    assert "bert: every start will run its constructor: it contains a builtins:function" in capsys.readouterr().err
    assert layout.STRUCTURE not in names(tmp_path / "bert")
    assert load_by(tmp_path / "bert")[1] == "constructor"


def test_every_kind_of_attribute_is_read_back_as_it_was(
    baked_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import BertForMaskedLM
    from transformers.generation import GenerationMode

    kept: dict[str, Any] = {
        "numbers": [1, 2.5, -0.0, float("inf"), True, None], "text": 'é"\n', "pair": (1, (2, "x")), "names": {"b", "a"},
        "table": {1: (2,), "x": {"y": [1]}}, "ordered": OrderedDict([("b", 1), ("a", 2)]), "empty": {},
        "dtype": torch.int8, "device": torch.device("cpu"), "size": torch.Size([1, 2]),
        "activation": partial(nn.functional.gelu, approximate="tanh"), "function": nn.functional.relu,
        "cls": nn.Linear, "member": GenerationMode.BEAM_SEARCH,
    }  # fmt: skip
    plain = BertForMaskedLM.__init__

    def keeping(self: Any, config: Any) -> None:
        plain(self, config)
        self.kept = kept
        self.layers = [self.cls, self.bert]

    monkeypatch.setattr(BertForMaskedLM, "__init__", keeping)
    run(job(baked_bert.parent / "checkpoint", tmp_path / "bert"))
    model, how = load_by(tmp_path / "bert")
    assert how == "structure"
    assert model.layers[0] is model.cls
    assert model.layers[1] is model.bert
    activation, found = kept.pop("activation"), model.kept.pop("activation")
    assert (found.func, found.args, found.keywords) == (activation.func, activation.args, activation.keywords)
    assert model.kept == kept
    assert {name: type(value) for name, value in model.kept.items()} == {name: type(v) for name, v in kept.items()}
    assert list(model.kept["ordered"]) == ["b", "a"]
    assert str(model.kept["numbers"]) == str(kept["numbers"])


@pytest.mark.parametrize("path", ["{0}/config.json", ["{0}"], {"x": {"y": "{0}"}}])
def test_one_that_keeps_a_path_of_the_bake_is_not_kept(
    baked_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], path: Any
) -> None:
    from transformers import BertForMaskedLM

    plain = BertForMaskedLM.__init__

    def keeping(self: Any, config: Any) -> None:
        plain(self, config)
        self.kept = json.loads(json.dumps(path).replace("{0}", str(tmp_path / "bert")))

    monkeypatch.setattr(BertForMaskedLM, "__init__", keeping)
    run(job(baked_bert.parent / "checkpoint", tmp_path / "bert"))
    assert "bert: every start will run its constructor: it contains a path" in capsys.readouterr().err
    assert layout.STRUCTURE not in names(tmp_path / "bert")


def test_one_that_reads_back_as_something_else_is_not_kept(
    baked_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    honest = structure.restore

    def other(*arguments: Any) -> nn.Module:
        module: Any = honest(*arguments)
        del module.bert.encoder.layer[1].attention.self.num_attention_heads
        return cast(nn.Module, module)

    monkeypatch.setattr("prebake_build.baking.structures.restore", other)
    run(job(baked_bert.parent / "checkpoint", tmp_path / "bert"))
    assert "read back, it differs in bert.encoder.layer.1.attention.self" in capsys.readouterr().err
    assert layout.STRUCTURE not in names(tmp_path / "bert")


def test_a_checkpoint_with_a_file_of_that_name_is_refused(baked_bert: Path, tmp_path: Path) -> None:
    from prebake.errors import SourceError

    shutil.copytree(baked_bert.parent / "checkpoint", tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / layout.STRUCTURE).write_bytes(b"")
    with pytest.raises(SourceError, match=r"has a structure\.json, but baked models reserve that name"):
        run(job(tmp_path / "checkpoint", tmp_path / "bert"))
