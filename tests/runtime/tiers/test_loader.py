"""One model into memory: the tiers in their order, each one's reason kept and logged, wrong folders refused."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from helpers import runtime_fakes
from helpers.runtime_fakes import bake_module, change_manifest
from prebake import load
from prebake.baked import layout
from prebake.baked.model import BakedModel
from prebake.errors import ConfigError, DocumentError, IntegrityError, LoadError, TensorFileError
from prebake.families.family import NAMES
from prebake.modules.assembly import slots
from prebake.telemetry import timeline
from prebake.tiers.loader import TIERS, Loader, Tier, check_tiers
from prebake_build.baking.prove import difference_of

MAPPED, READ, ORDINARY = TIERS


def assert_same(found: nn.Module, expected: nn.Module) -> None:
    wanted = {slot.key: slot.tensor for slot in slots(expected)}
    tensors = {slot.key: slot.tensor for slot in slots(found)}
    assert tensors.keys() == wanted.keys()
    assert [key for key in wanted if difference_of(wanted[key], tensors[key])] == []


def cannot_map(path: Path) -> Any:
    raise TensorFileError(f"{path}: cannot be mapped: No such device")


def with_hidden_buffer(module: nn.Module) -> nn.Module:
    """What a newer class may have: one more tensor that no checkpoint holds."""
    module.register_buffer("newer", torch.arange(3.0), persistent=False)
    return module


@pytest.mark.parametrize("tier", [MAPPED, READ])
def test_a_fast_tier_gives_every_tensor_bit_for_bit(tmp_path: Path, tier: Tier) -> None:
    folder, module = bake_module(tmp_path, "odd", "helpers.runtime_fakes:odd")
    loaded = load(folder, [tier])
    assert (loaded.name, loaded.tier, loaded.fallback_reason) == ("odd", tier, None)
    assert_same(loaded.model, module)
    words = torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        assert torch.equal(loaded.model(words), module(words))
    assert not loaded.model.training
    assert loaded.seconds > 0


def test_the_ordinary_tier_gives_every_saved_tensor(tmp_path: Path) -> None:
    folder, module = bake_module(tmp_path, "odd", "helpers.runtime_fakes:odd")
    loaded = load(folder, [ORDINARY])
    assert (loaded.tier, loaded.fallback_reason) == (ORDINARY, None)
    found = {slot.key: slot.tensor for slot in slots(loaded.model)}
    for slot in slots(module):
        if slot.saved:
            assert not difference_of(slot.tensor, found[slot.key]), slot.key


def test_mapped_is_tried_first_and_read_when_the_file_cannot_be_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder, module = bake_module(tmp_path, "model", "helpers.runtime_fakes:plain")
    assert load(folder).tier == MAPPED
    monkeypatch.setattr("prebake.weights.tensors.map_tensors", cannot_map)
    with caplog.at_level(logging.WARNING, logger="prebake"):
        loaded = load(folder)
    why = f"{folder}/model.safetensors: cannot be mapped: No such device"
    assert (loaded.tier, loaded.fallback_reason) == (READ, f"mapped: {why}")
    assert caplog.messages == [f"model: tier mapped failed: {why}"]
    assert_same(loaded.model, module)


def test_ordinary_is_reached_when_the_class_has_another_tensor_than_was_baked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder, module = bake_module(tmp_path, "model", "helpers.runtime_fakes:plain")
    plain = runtime_fakes.plain
    monkeypatch.setattr(runtime_fakes, "plain", lambda: with_hidden_buffer(plain()))
    with caplog.at_level(logging.WARNING, logger="prebake"):
        loaded = load(folder, allow=[__name__])
    why = "mapped: the class as installed differs from the one that was baked: not baked: newer"
    assert (loaded.tier, loaded.fallback_reason) == (ORDINARY, why)
    assert caplog.messages == [f"model: tier {why}".replace(": the", " failed: the", 1)]
    assert torch.equal(loaded.model(torch.ones(1, 4)), module(torch.ones(1, 4)))


def test_a_class_with_a_layer_more_is_refused_by_every_tier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No tier may fill it with random values."""
    folder, _ = bake_module(tmp_path, "model", "helpers.runtime_fakes:plain")
    plain = runtime_fakes.plain
    monkeypatch.setattr(runtime_fakes, "plain", lambda: nn.Sequential(*plain().children(), nn.Linear(2, 2)))
    with pytest.raises(LoadError) as error:
        load(folder, allow=[__name__])
    assert str(error.value) == (
        "model: no tier could load it:\n"
        "  mapped: the class as installed differs from the one that was baked: not baked: 3.bias, 3.weight\n"
        f"  ordinary: {folder}: not baked: 3.weight, 3.bias"
    )
    assert isinstance(error.value.__cause__, LoadError)


def test_a_constructor_that_needs_values_makes_them_and_then_gets_what_was_baked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, module = bake_module(tmp_path, "model", "helpers.runtime_fakes:looking")
    with caplog.at_level(logging.INFO, logger="prebake"):
        loaded = load(folder)
    assert (loaded.tier, loaded.fallback_reason) == (MAPPED, None)
    assert caplog.messages == [
        "built with values, because its constructor fails without: "
        "RuntimeError: Tensor.item() cannot be called on meta tensors"
    ]
    assert_same(loaded.model, module)


def test_reading_follows_an_ordinary_load_that_failed_where_that_is_the_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, module = bake_module(tmp_path, "model", "helpers.runtime_fakes:plain")
    monkeypatch.setattr(nn.Module, "load_state_dict", lambda *_, **__: 1 / 0)
    loaded = load(folder, [ORDINARY, READ])
    assert (loaded.tier, loaded.fallback_reason) == (READ, "ordinary: ZeroDivisionError: division by zero")
    assert_same(loaded.model, module)


def test_garbage_of_the_right_size_is_refused_by_every_tier_with_each_reason(tmp_path: Path) -> None:
    folder, _ = bake_module(tmp_path, "model", "helpers.runtime_fakes:plain")
    weights = folder / layout.WEIGHTS
    size = weights.stat().st_size
    weights.write_bytes(b"\xff" * size)
    with pytest.raises(LoadError) as error:
        load(folder)
    why = (
        f"{weights}: its first 8 bytes give a header of 18,446,744,073,709,551,615 bytes, "
        f"but the file has {size:,}: this is not a safetensors file, or it is truncated"
    )
    assert str(error.value) == (f"model: no tier could load it:\n  mapped: {why}\n  read: {why}\n  ordinary: {why}")


def test_a_truncated_file_is_refused_before_anything_is_mapped(tmp_path: Path) -> None:
    folder, _ = bake_module(tmp_path, "model", "helpers.runtime_fakes:plain")
    weights = folder / layout.WEIGHTS
    size = weights.stat().st_size
    with weights.open("r+b") as file:
        file.truncate(5000 if size > 5000 else size - 1)
    with pytest.raises(IntegrityError, match=r"differs from its manifest:\n  model\.safetensors: expected 4,\d+ bytes"):
        load(folder)


def test_a_long_error_is_one_line_of_300_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = bake_module(tmp_path, "model", "helpers.runtime_fakes:plain")

    def fail(path: Path) -> Any:
        raise TensorFileError("much\n  to say " * 100)

    monkeypatch.setattr("prebake.weights.tensors.map_tensors", fail)
    why = load(folder).fallback_reason
    assert why is not None
    assert why.startswith("mapped: much to say much to say ")
    assert why.endswith("...")
    assert len(why) == len("mapped: ") + 300


def test_a_folder_may_be_a_string(tmp_path: Path) -> None:
    folder, _ = bake_module(tmp_path, "model", "helpers.runtime_fakes:plain")
    assert_same(load(str(folder)).model, load(folder).model)


def test_a_class_that_is_not_installed_is_wrong_configuration(tmp_path: Path) -> None:
    folder, _ = bake_module(tmp_path, "model", "helpers.runtime_fakes:plain")
    change_manifest(folder, **{"class": "helpers.runtime_fakes:absent"})
    with pytest.raises(ConfigError) as error:
        load(folder)
    assert str(error.value) == (
        f"{folder}: class: cannot import helpers.runtime_fakes:absent: module 'helpers.runtime_fakes' "
        "has no attribute 'absent'"
    )
    change_manifest(folder, **{"class": "no.such.package:factory"})
    with pytest.raises(ConfigError, match=r"cannot import no\.such\.package:factory: No module named 'no' \(is its"):
        load(folder, allow=["no.such"])


def test_a_factory_that_gives_no_module_is_wrong_configuration(tmp_path: Path) -> None:
    folder, _ = bake_module(tmp_path, "model", "helpers.runtime_fakes:plain")
    change_manifest(folder, **{"class": "builtins:dict", "options": {}})
    with pytest.raises(ConfigError) as error:
        load(folder, allow=["builtins"])
    assert str(error.value) == f"{folder}: class: builtins:dict returned a dict, not a torch.nn.Module"


def test_an_unknown_family_is_wrong_configuration_with_the_nearest(tmp_path: Path) -> None:
    folder, _ = bake_module(tmp_path, "model", "helpers.runtime_fakes:plain")
    change_manifest(folder, family="troch")
    with pytest.raises(ConfigError) as error:
        load(folder)
    assert str(error.value) == (
        f'{folder}: family: "troch" is not an installed family (installed: {", ".join(NAMES)}): did you mean "torch"?'
    )


def test_a_framework_that_is_not_installed_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = bake_module(tmp_path, "model", "helpers.runtime_fakes:plain")

    def prepare(self: object, baked: object) -> None:
        raise ModuleNotFoundError("No module named 'torch'")

    monkeypatch.setattr("prebake.families.torch_module.TorchFamily.prepare", prepare)
    with pytest.raises(LoadError) as error:
        load(folder)
    assert str(error.value) == (
        "model: cannot import a package that its family needs: No module named 'torch' (pip install torch)"
    )


def test_a_folder_without_manifest_is_no_baked_model(tmp_path: Path) -> None:
    with pytest.raises(DocumentError):
        load(tmp_path)


def test_parts_that_a_family_does_not_have_are_refused(tmp_path: Path) -> None:
    folder, _ = bake_module(tmp_path, "model", "helpers.runtime_fakes:plain")
    loaded = load(folder)
    for part in ("processor", "reader"):
        with pytest.raises(LoadError) as error:
            getattr(loaded, part)
        assert str(error.value) == f"model: this model of family torch was baked without a {part}"


def test_tiers_are_known_and_keep_their_order() -> None:
    assert check_tiers(["read", "mapped"]) == (READ, MAPPED)
    with pytest.raises(ConfigError) as error:
        check_tiers(["maped"])
    assert str(error.value) == '"maped" is not a tier (mapped, read, ordinary): did you mean "mapped"?'
    with pytest.raises(ConfigError) as error:
        check_tiers([])
    assert str(error.value) == "no tier named: expected some of mapped, read, ordinary"


def test_every_phase_of_a_load_is_on_the_timeline(tmp_path: Path) -> None:
    folder, _ = bake_module(tmp_path, "phases", "helpers.runtime_fakes:plain")
    load(folder)
    names = [span.name for span in timeline.process.spans if span.model == "phases"]
    assert names == ["check", "import", "map", "skeleton", "assign", "equip"]


def test_a_loader_tells_its_own_span_and_no_other(tmp_path: Path) -> None:
    """The converter loads with one too, and depends on no telemetry."""
    folder, _ = bake_module(tmp_path, "told", "helpers.runtime_fakes:plain")
    steps: list[tuple[str, str | None]] = []

    @contextmanager
    def span(step: str, model: str | None) -> Iterator[None]:
        steps.append((step, model))
        yield

    baked = BakedModel.open(folder)
    Loader(verify="full", allow=("helpers.runtime_fakes",), span=span).load(baked)
    assert steps == [(step, "told") for step in ("verify", "check", "import", "map", "skeleton", "assign", "equip")]
    assert Loader(tiers=("read",), allow=("helpers.runtime_fakes",)).module(baked)[1:] == ("read", None)
    assert not [span for span in timeline.process.spans if span.model == "told"]


def test_a_loader_allows_nothing_by_itself(tmp_path: Path) -> None:
    """Whatever the environment says: that is for those to read who make one."""
    folder, _ = bake_module(tmp_path, "model", "helpers.runtime_fakes:plain")
    with pytest.raises(ConfigError, match=r"is code that the application does not allow \(allowed: none\)"):
        Loader().load(BakedModel.open(folder))


def test_arguments_reach_the_factory(tmp_path: Path) -> None:
    folder, module = bake_module(tmp_path, "model", "helpers.runtime_fakes:plain", arguments={"width": 6})
    assert load(folder).model.get_parameter("0.weight").shape == (6, 6)
    assert_same(load(folder).model, module)


def test_a_mapped_model_can_be_trained_and_its_file_stays_as_it_is(tmp_path: Path) -> None:
    folder, _ = bake_module(tmp_path, "model", "helpers.runtime_fakes:plain")
    before = (folder / layout.WEIGHTS).read_bytes()
    first, second = load(folder).model.train(), load(folder).model
    untouched = [parameter.clone() for parameter in second.parameters()]
    optimizer = torch.optim.SGD(first.parameters(), lr=1.0)
    first(torch.randn(8, 4)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(first.get_parameter("0.weight"), second.get_parameter("0.weight"))
    assert all(map(torch.equal, second.parameters(), untouched))
    assert (folder / layout.WEIGHTS).read_bytes() == before
