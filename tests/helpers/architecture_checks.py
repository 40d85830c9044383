"""One architecture from random weights to a mapped model, held against `from_pretrained` of the same checkpoint."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from helpers.baking import FORMS, job, save
from helpers.tiny_models import Architecture, inputs_of, tiny_model
from prebake import load
from prebake.modules.assembly import slots
from prebake.telemetry import timeline
from prebake.weights.tensors import aligned
from prebake_build.baking.prove import difference_of
from prebake_build.baking.worker import run


@dataclass(kw_only=True)
class Outcome:
    """How one architecture fared."""

    class_: str
    group: str
    model_type: str
    dtype: str
    form: str
    parameters: int
    tier: str
    reason: str | None
    structure: bool
    """Whether it came from its structure; otherwise its constructor ran."""
    differences: list[str] = field(default_factory=list)
    """Tensors, outputs, generated tokens, configuration: whatever is not as `from_pretrained` has it."""
    outputs: int = 0
    """How many tensors the forward pass gave, all of which were compared."""
    tokens: int = 0
    """How many tokens were generated and compared."""
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def name_of(architecture: Architecture) -> str:
    """What tests and tables call it."""
    return architecture.class_ + ("" if architecture.dtype == "float32" else f"-{architecture.dtype}")


def check(architecture: Architecture, number: int, folder: Path) -> Outcome:
    """Build, save, bake, load, compare. `number` picks the checkpoint's form where the table names none."""
    started = time.monotonic()
    form = architecture.form or FORMS[number % len(FORMS)]
    model = tiny_model(architecture)
    checkpoint = save(model, folder / "checkpoint", form)
    run(job(checkpoint, folder / "model", class_=architecture.class_, dtype=architecture.dtype))
    spans = len(timeline.process.spans)
    with _registered() as registered:
        loaded = load(folder / "model")
    ordinary = in_memory(type(model).from_pretrained(checkpoint, dtype=getattr(torch, architecture.dtype)))
    outcome = Outcome(
        class_=architecture.class_, group=architecture.group, model_type=model.config.model_type, form=form,
        dtype=architecture.dtype, parameters=sum(parameter.numel() for parameter in model.parameters()),
        tier=loaded.tier, reason=loaded.fallback_reason,
        structure="skeleton" not in {span.name for span in timeline.process.spans[spans:]},
    )  # fmt: skip
    outcome.differences += held_differences(ordinary, loaded.model) + state_differences(ordinary, loaded.model)
    with torch.inference_mode():
        _compare_outputs(ordinary, loaded.model, inputs_of(ordinary, architecture), outcome, registered)
        if architecture.generates and ordinary.can_generate():
            _compare_tokens(ordinary, loaded.model, inputs_of(ordinary, architecture), outcome)
    outcome.seconds = time.monotonic() - started
    return outcome


def in_memory(module: Any) -> Any:
    """The module with every tensor where torch's allocator would put it.

    `from_pretrained` maps a safetensors file too, at whatever alignment the file has, and its outputs vary in
    their last bits with it. (4.57 maps pickles too; 5 loads them into memory, which gives what this gives.)
    """
    for slot in slots(module):
        if not slot.tensor.is_meta:
            slot.tensor.data = aligned(slot.tensor.data)
    return module


def held_differences(expected: nn.Module, found: nn.Module) -> list[str]:
    """Tensors that differ, saved or not, and parameters that are trained in one and not in the other."""
    theirs = {slot.key: slot.tensor for slot in slots(expected) if not slot.tensor.is_meta}
    unused = {slot.key for slot in slots(expected)} - theirs.keys()
    ours = {slot.key: slot.tensor for slot in slots(found) if slot.key not in unused}
    differences = [f"{key}: only in one" for key in sorted(ours.keys() ^ theirs.keys())]
    for key in ours.keys() & theirs.keys():
        if difference := difference_of(theirs[key], ours[key]):
            differences.append(f"{key}: {difference}")
        elif isinstance(ours[key], nn.Parameter) and ours[key].requires_grad != theirs[key].requires_grad:
            differences.append(f"{key}: requires_grad is {ours[key].requires_grad}")
    return differences


def state_differences(expected: Any, found: Any) -> list[str]:
    """What the two modules are, beside tensors: configurations, plain attributes, mode, keys of the state dict."""
    pairs: dict[str, tuple[Any, Any]] = {
        "config": (_config(expected), _config(found)),
        "attention": (expected.config._attn_implementation, found.config._attn_implementation),
        "training": (expected.training, found.training),
        "state dict": (list(expected.state_dict()), list(found.state_dict())),
        "plain attributes": (_plain(expected), _plain(found)),
    }
    if expected.can_generate():
        pairs["generation_config"] = (expected.generation_config.to_dict(), found.generation_config.to_dict())
    return [f"{what}: {_first(ours, theirs)}" for what, (theirs, ours) in pairs.items() if ours != theirs]


def _config(module: Any) -> dict[str, Any]:
    return {key: value for key, value in module.config.to_dict().items() if "name_or_path" not in key}


def _plain(module: nn.Module) -> dict[str, str]:
    return {
        f"{path}.{name}": repr(value)
        for path, part in module.named_modules()
        for name, value in vars(part).items()
        if isinstance(value, (bool, int, float, str, torch.dtype)) and name[0] != "_" and name != "name_or_path"
    }


def _first(ours: Any, theirs: Any) -> str:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        key = next(key for key in {**theirs, **ours} if ours.get(key) != theirs.get(key))
        return f"{key} is {ours.get(key)!r}, not {theirs.get(key)!r}"
    return f"{ours!r}, not {theirs!r}"


@contextmanager
def _registered() -> Iterator[dict[Any, Any]]:
    """What the block leaves in transformers' list of classes that can give hidden states, and nothing older.

    Constructors fill the list: an ordinary load in the same process would hide that a mapped one does not.
    """
    from transformers import modeling_utils

    left: dict[Any, Any] = {}
    modeling_utils._CAN_RECORD_REGISTRY.clear()
    yield left
    left.update(modeling_utils._CAN_RECORD_REGISTRY)


def _compare_outputs(
    ordinary: Any, mapped: Any, inputs: dict[str, Any], outcome: Outcome, registered: dict[Any, Any]
) -> None:
    from transformers import modeling_utils

    theirs = dict(tensors_in(_everything(ordinary, inputs)))
    modeling_utils._CAN_RECORD_REGISTRY.clear()
    dict.update(modeling_utils._CAN_RECORD_REGISTRY, registered)
    ours = dict(tensors_in(_everything(mapped, inputs)))
    outcome.outputs = len(theirs)
    outcome.differences += [f"outputs: {key} only in one" for key in sorted(theirs.keys() ^ ours.keys())]
    outcome.differences += [
        f"outputs: {key}: {difference}"
        for key in theirs.keys() & ours.keys()
        if (difference := difference_of(theirs[key], ours[key]))
    ]


def _compare_tokens(ordinary: Any, mapped: Any, inputs: dict[str, Any], outcome: Outcome) -> None:
    inputs = {name: value for name, value in inputs.items() if not name.startswith("decoder_")}
    theirs, ours = (
        _seeded(module.generate, {**inputs, "max_new_tokens": 3, "do_sample": False}) for module in (ordinary, mapped)
    )
    outcome.tokens = theirs.numel()
    if difference := difference_of(theirs, ours):
        outcome.differences.append(f"generated: {difference}")


def _everything(module: Any, inputs: dict[str, Any]) -> Any:
    """What a forward pass gives, every layer's hidden states included where the model can."""
    try:
        return _seeded(module, inputs | {"output_hidden_states": True})
    except (TypeError, ValueError, AttributeError):  # it has no such argument, or hands it on to a part that has none
        return _seeded(module, inputs)


def _seeded(call: Any, inputs: dict[str, Any]) -> Any:
    torch.manual_seed(2)
    return call(**inputs)


def tensors_in(value: Any, path: str = "") -> list[tuple[str, torch.Tensor]]:
    """Every tensor of an output, with its path."""
    if isinstance(value, torch.Tensor):
        return [(path, value)]
    if isinstance(value, dict):
        return [found for key, item in value.items() for found in tensors_in(item, f"{path}.{key}")]
    if isinstance(value, (list, tuple)):
        return [found for index, item in enumerate(value) for found in tensors_in(item, f"{path}.{index}")]
    return []
