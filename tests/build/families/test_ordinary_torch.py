"""Files of weights load into the module that their factory makes, or are refused with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from helpers.baking import recipe, refused
from helpers.networks import Tagger
from prebake.errors import ConfigError, SourceError
from prebake_build.baking.ordinary import load_checkpoint
from prebake_build.baking.prove import difference_of
from prebake_build.families.family import Ordinary, Recipe


def saved(folder: Path, state: Any = None, name: str = "weights.pth") -> Path:
    folder.mkdir(exist_ok=True)
    state = Tagger().state_dict() if state is None else state
    torch.save(state, folder / name) if not name.endswith(".safetensors") else save_file(state, folder / name)
    return folder


def tagger(**changes: Any) -> Recipe:
    return recipe("torch", **({"class_": "helpers.networks:tagger"} | changes))


def load(folder: Path, **changes: Any) -> Ordinary:
    return load_checkpoint(tagger(**changes), folder)


def test_a_module_is_built_by_its_factory_and_filled(tmp_path: Path) -> None:
    module = Tagger(words=13)
    found = load(saved(tmp_path, module.state_dict()), options={"arguments": {"words": 13}})
    assert (found.class_, found.options, found.module.training) == (
        "helpers.networks:tagger", {"arguments": {"words": 13}}, False
    )  # fmt: skip
    loaded = found.module.state_dict()
    assert not [name for name, tensor in module.state_dict().items() if difference_of(tensor, loaded[name])]


def test_a_dtype_changes_the_weights_and_keeps_their_ties(tmp_path: Path) -> None:
    module = load(saved(tmp_path), dtype="bfloat16").module
    assert isinstance(module, Tagger)
    assert module.out.weight.dtype == torch.bfloat16
    assert module.norm.num_batches_tracked is not None
    assert module.norm.num_batches_tracked.dtype == torch.int64
    assert module.out.weight.data_ptr() == module.embedding.weight.data_ptr()


CLASS = "models.m.class: "


@pytest.mark.parametrize(
    ("class_", "expected"),
    [
        (None, CLASS + 'a model of family torch needs one: class = "torch:package.module:factory"'),
        ("nowhere:f", CLASS + "cannot import nowhere:f: No module named 'nowhere' (is its package installed beside "
                              "prebake?)"),
        ("helpers.networks:f", CLASS + "cannot import helpers.networks:f: module 'helpers.networks' has no "
                               "attribute 'f' (is its package installed beside prebake?)"),
        ("helpers.networks:no_module", CLASS + "helpers.networks:no_module returned a str, not a torch.nn.Module"),
        ("helpers.networks:failing", CLASS + "helpers.networks:failing failed: RuntimeError: no such preset"),
    ],
)  # fmt: skip
def test_a_factory_that_gives_no_module_is_refused(tmp_path: Path, class_: str | None, expected: str) -> None:
    assert refused(ConfigError, tagger(class_=class_), saved(tmp_path)) == expected


def test_arguments_that_the_factory_does_not_take_are_refused(tmp_path: Path) -> None:
    assert refused(ConfigError, tagger(options={"arguments": {"depth": 3}}), saved(tmp_path)) == (
        "models.m.class: helpers.networks:tagger failed: TypeError: tagger() got an unexpected keyword argument 'depth'"
    )


def test_a_state_dict_of_another_class_is_refused(tmp_path: Path) -> None:
    assert refused(SourceError, tagger(class_="helpers.networks:linear"), saved(tmp_path)).startswith(
        "models.m: the checkpoint does not fit the class: Error(s) in loading state_dict for Linear: Missing key(s) in "
        'state_dict: "weight", "bias". Unexpected key(s) in state_dict: "embedding.weight", '
    )


def test_exactly_one_file_of_weights_is_expected(tmp_path: Path) -> None:
    (tmp_path / "README.md").touch()
    expected = "models.m.source: expected one file of weights (.safetensors, .bin, .pt, .pth, .ckpt), found "
    assert refused(ConfigError, tagger(), tmp_path) == expected + "none"
    saved(saved(tmp_path), name="b.bin")
    assert refused(ConfigError, tagger(), tmp_path) == expected + '"b.bin", "weights.pth"'
