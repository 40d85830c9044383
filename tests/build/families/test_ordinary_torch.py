"""Files of weights load into the module that their factory makes, or are refused with the reason."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from helpers.baking import recipe, refused, torch_job
from helpers.networks import Tagger
from prebake import load as baked_load
from prebake.errors import ConfigError, PrebakeError, SourceError
from prebake.tiers.loader import TIERS
from prebake_build.baking.ordinary import load_checkpoint
from prebake_build.baking.prove import difference_of
from prebake_build.baking.worker import run
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
                               "attribute 'f'"),
        ("helpers.networks:liner", CLASS + "cannot import helpers.networks:liner: module 'helpers.networks' has no "
                                   "attribute 'liner': did you mean \"linear\"?"),
        ("helpers.networks:no_module", CLASS + "helpers.networks:no_module returned a str, not a torch.nn.Module"),
        ("helpers.unimportable:f", CLASS + "helpers.unimportable:f failed: OSError: Could not load this library: x.so"),
        ("helpers.networks:failing", CLASS + "helpers.networks:failing failed: RuntimeError: no such preset"),
    ],
)  # fmt: skip
def test_a_factory_that_gives_no_module_is_refused(tmp_path: Path, class_: str | None, expected: str) -> None:
    assert refused(ConfigError, tagger(class_=class_), saved(tmp_path)) == expected


def test_arguments_that_the_factory_does_not_take_are_refused(tmp_path: Path) -> None:
    assert refused(ConfigError, tagger(options={"arguments": {"depth": 3}}), saved(tmp_path)) == (
        "models.m.class: helpers.networks:tagger failed: TypeError: tagger() got an unexpected keyword argument 'depth'"
    )


def test_a_state_dict_of_another_class_is_refused_in_a_few_names(tmp_path: Path) -> None:
    assert refused(SourceError, tagger(class_="helpers.networks:linear"), saved(tmp_path)) == (
        'models.m: the checkpoint does not fit the class: it lacks 2 tensors of the class: "weight", "bias"; it has 33 '
        'that the class lacks: "embedding.weight", "lstm.weight_ih_l0", "lstm.weight_hh_l0", "lstm.bias_ih_l0", '
        '"lstm.bias_hh_l0" and 28 more'
    )


def test_tensors_of_another_shape_are_refused_in_a_few_names(tmp_path: Path) -> None:
    state = nn.Linear(4, 2).state_dict()
    assert refused(SourceError, tagger(class_="helpers.networks:linear"), saved(tmp_path, state)) == (
        "models.m: the checkpoint does not fit the class: 1 have another shape: weight is (2, 4) in the checkpoint and "
        "(2, 3) in the class"
    )


# --- which files -------------------------------------------------------------------------------------------------

WEIGHTS = "(.safetensors, .bin, .pt, .pth, .ckpt)"


def test_one_file_of_weights_is_expected_where_none_is_declared(tmp_path: Path) -> None:
    (tmp_path / "README.md").touch()
    expected = f"models.m.source: expected one file of weights {WEIGHTS}, found "
    assert refused(ConfigError, tagger(), tmp_path) == expected + "none"
    saved(saved(tmp_path), name="b.bin")
    assert refused(ConfigError, tagger(), tmp_path) == (
        expected + '"b.bin", "weights.pth": add file = "…" or a list to choose'
    )


def test_one_of_several_files_is_chosen(tmp_path: Path) -> None:
    saved(saved(tmp_path, nn.Linear(3, 2).state_dict(), name="b.bin"), {"w": torch.ones(1)})
    found = load(tmp_path, class_="helpers.networks:linear", options={"file": "b.bin"})
    assert found.options == {"arguments": {}}


def test_a_file_that_is_not_there_gets_the_nearest(tmp_path: Path) -> None:
    saved(saved(tmp_path), name="b.bin")
    assert refused(ConfigError, tagger(options={"file": "weight.pth"}), tmp_path) == (
        'models.m.file: the checkpoint has no "weight.pth" (it has "b.bin", "weights.pth"): did you mean "weights.pth"?'
    )


def test_several_files_make_one_state_dict(tmp_path: Path) -> None:
    state = Tagger().state_dict()
    names = list(state)
    saved(tmp_path, {name: state[name] for name in names[::2]}, "a.pth")
    saved(tmp_path, {name: state[name] for name in names[1::2]}, "b.pth")
    loaded = load(tmp_path, options={"file": ["a.pth", "b.pth"]}).module.state_dict()
    assert not [name for name, tensor in state.items() if difference_of(tensor, loaded[name])]


def test_shards_of_an_index_make_one_state_dict(tmp_path: Path) -> None:
    state = Tagger().state_dict()
    names = list(state)
    shards = {f"w-{number}.bin": names[number::2] for number in range(2)}
    for shard, part in shards.items():
        saved(tmp_path, {name: state[name] for name in part}, shard)
    index = {"weight_map": {name: shard for shard, part in shards.items() for name in part}}
    (tmp_path / "w.bin.index.json").write_text(json.dumps(index))
    loaded = load(tmp_path).module.state_dict()
    assert not [name for name, tensor in state.items() if difference_of(tensor, loaded[name])]
    saved(tmp_path, state, "other.bin")
    assert refused(ConfigError, tagger(), tmp_path) == (
        f'models.m.source: expected one file of weights {WEIGHTS}, found "other.bin", "w-0.bin", "w-1.bin", '
        '"w.bin.index.json": add file = "…" or a list to choose'
    )


def test_files_of_parts_get_the_names_of_their_places(tmp_path: Path) -> None:
    torch.manual_seed(3)
    parts = {"0": nn.Linear(4, 4, bias=False), "1": nn.Linear(4, 4, bias=False)}
    for name, part in parts.items():
        saved(tmp_path, part.state_dict(), f"{name}.pth")
    pair = {"class_": "helpers.networks:pair"}
    module = load(tmp_path, **pair, options={"file": {"0": "0.pth", "1": "1.pth"}}).module
    assert [difference_of(module.get_parameter(f"{name}.weight"), part.weight) for name, part in parts.items()] == [
        None, None,
    ]  # fmt: skip
    assert refused(ConfigError, tagger(**pair, options={"file": ["0.pth", "1.pth"]}), tmp_path) == (
        'models.m.file: 1.pth and a file before it both hold "weight": if each is a part of the network, give its '
        'place, file = { encoder = "a.pth", decoder = "b.pth" }'
    )
    assert refused(ConfigError, tagger(**pair, options={"file": {"0": "0.pth", "10": "1.pth"}}), tmp_path) == (
        'models.m.file: the network has no part "10" (it has "0", "1"): did you mean "1"?'
    )


# --- where the state dict stands ---------------------------------------------------------------------------------


def test_a_state_dict_under_a_key_is_loaded(tmp_path: Path) -> None:
    linear = nn.Linear(3, 2)
    saved(tmp_path, {"epoch": 3, "params_ema": linear.state_dict(), "nested": {"model": linear.state_dict()}})
    for key in ("params_ema", "nested.model"):
        module = load(tmp_path, class_="helpers.networks:linear", options={"key": key}).module
        assert difference_of(module.get_parameter("weight"), linear.weight) is None


@pytest.mark.parametrize(
    ("key", "kind", "message"),
    [
        (None, SourceError,
         'models.m: weights.pth is nested: its state dict is one of "params_ema" (3 tensors), "params" (2 tensors), '
         'and "epoch", "nested" beside: add key = "params_ema" to the model\'s table'),
        ("nested", SourceError,
         'models.m: weights.pth is nested under "nested": its state dict is one of "nested.model" (2 tensors): add '
         'key = "nested.model" to the model\'s table'),
        ("parms", ConfigError,
         'models.m.key: weights.pth has no "parms" (it has "epoch", "params_ema", "params", "nested"): did you mean '
         '"params"?'),
        ("epoch", SourceError,
         'models.m: weights.pth does not contain a state dict under "epoch" (expected names and tensors only)'),
        ("epoch.model", ConfigError, 'models.m.key: weights.pth has no "model" (there are no keys)'),
    ],
)  # fmt: skip
def test_a_nested_checkpoint_says_which_keys_it_has(
    tmp_path: Path, key: str | None, kind: type[PrebakeError], message: str
) -> None:
    state = nn.Linear(3, 2).state_dict()
    ema = {**state, "more": torch.ones(1)}
    saved(tmp_path, {"epoch": 3, "params_ema": ema, "params": state, "nested": {"model": state}})
    options = {} if key is None else {"key": key}
    assert refused(kind, tagger(class_="helpers.networks:linear", options=options), tmp_path) == message


def test_a_torchscript_program_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's, of its own format
        torch.jit.save(torch.jit.script(nn.Linear(3, 2)), tmp_path / "w.pt")
    assert refused(SourceError, tagger(), tmp_path) == (
        "models.m: w.pt is a TorchScript program, which holds code: save its state dict instead, "
        "torch.save(torch.jit.load(file).state_dict(), other_file)"
    )


# --- what the network does without -------------------------------------------------------------------------------


def test_tensors_that_the_network_does_without_are_named(tmp_path: Path) -> None:
    state = {**nn.Linear(3, 2).state_dict(), "loss.weight": torch.ones(1), "loss.bias": torch.ones(1)}
    saved(tmp_path, state)
    linear = {"class_": "helpers.networks:linear"}
    assert refused(SourceError, tagger(**linear), tmp_path) == (
        'models.m: the checkpoint does not fit the class: it has 2 that the class lacks: "loss.weight", "loss.bias"; '
        'if the network does without them, name them: ignore = ["…"]'
    )
    assert load(tmp_path, **linear, options={"ignore": ["loss.*"]}).module.get_parameter("bias").shape == (2,)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("los.*", 'models.m.ignore: "los.*" matches no tensor of the checkpoint'),
        ("*", 'models.m.ignore: "*" matches tensors that the class has: "bias", "weight"'),
    ],
)
def test_what_is_ignored_must_be_there_and_not_wanted(tmp_path: Path, pattern: str, message: str) -> None:
    saved(tmp_path, nn.Linear(3, 2).state_dict())
    assert refused(ConfigError, tagger(class_="helpers.networks:linear", options={"ignore": [pattern]}), tmp_path) == (
        message
    )


# --- factories that read small files -----------------------------------------------------------------------------


def test_a_factory_that_takes_the_folder_gets_it_with_the_small_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = saved(tmp_path / "c", nn.Linear(5, 2).state_dict())
    (checkpoint / "sizes.json").write_text('{"inputs": 5}')
    found = load(checkpoint, class_="helpers.networks:sized")
    assert (found.options, found.keep) == ({"arguments": {}, "folder": True}, ("sizes.json",))
    run(torch_job(checkpoint, tmp_path / "m", "helpers.networks:sized"))
    shutil.rmtree(checkpoint)
    for tier in TIERS:
        assert baked_load(tmp_path / "m", [tier]).model.get_parameter("weight").shape == (2, 5)


def test_a_folder_that_the_user_names_is_theirs(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path / "c", nn.Linear(5, 2).state_dict())
    (checkpoint / "sizes.json").write_text('{"inputs": 4}')
    (tmp_path / "sizes.json").write_text('{"inputs": 5}')
    found = load(checkpoint, class_="helpers.networks:sized", options={"arguments": {"folder": str(tmp_path)}})
    assert (found.options, found.keep) == ({"arguments": {"folder": str(tmp_path)}}, ())
