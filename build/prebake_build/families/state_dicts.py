"""Reads a checkpoint file as a state dict of names and tensors, without running code from the file.

Pickles are read with `weights_only=True`: they may construct only tensors and containers; other files are refused. A
pickled state dict also has the version of each module (`_metadata`), which modules use to read state dicts of older
versions: it is kept.
"""

from __future__ import annotations

import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prebake.documents.messages import reason
from prebake.errors import SourceError
from prebake.modules.assembly import identity_of, relink, slots
from prebake.weights.tensors import map_tensors

StateDict = Mapping[str, torch.Tensor]

_WANTED = re.compile(r"GLOBAL ([\w.]+)")
_WHY = re.compile(r"WeightsUnpickler error:\s*(\S.*)")


def read_state_dict(path: Path, where: str) -> StateDict:
    """The tensors of a pickle or a safetensors file, mapped if the format allows it.

    Raises SourceError if the file is damaged, would run code, or contains anything but names and tensors, and
    TensorFileError for a damaged safetensors file.
    """
    if path.suffix == ".safetensors":
        return map_tensors(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        raise refusal(error, f"{where}: {path.name}") from error
    except Exception as error:  # the unpickler checks little: a damaged file raises KeyError or any other
        raise SourceError(f"{where}: {path.name} is not a readable checkpoint: {first_line(error)}") from error
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        raise SourceError(f"{where}: {path.name} does not contain a state dict (expected names and tensors only)")
    return state


def refusal(error: pickle.UnpicklingError, where: str) -> SourceError:
    """The error for a pickle, without torch's advice to turn the protection off."""
    if wanted := _WANTED.search(str(error)):
        return SourceError(
            f"{where}: refused: its pickle wants to construct {wanted[1]}, and loading that would run code from the "
            "file: only tensors and containers of tensors are loaded. Ask its author for safetensors, or convert it "
            "yourself if you trust it"
        )
    why = _WHY.search(str(error))
    return SourceError(
        f"{where}: cannot be loaded without running code from the file: {why[1] if why else first_line(error)}"
    )


def load_error(error: BaseException, where: str, what: str) -> SourceError:
    """The error for whatever a library raised while it loaded a checkpoint as `what`."""
    cause: BaseException | None = error
    while cause is not None:  # libraries wrap the pickle's error in others
        if isinstance(cause, pickle.UnpicklingError):
            return refusal(cause, where)
        cause = cause.__cause__ or cause.__context__
    return SourceError(f"{where}: {what} cannot load this checkpoint: {first_line(error)}")


def cast(state: StateDict, dtype: torch.dtype) -> StateDict:
    """A copy with every floating-point tensor in `dtype`; tied tensors stay tied."""
    done: dict[tuple[object, ...], torch.Tensor] = {}
    tensors = {}
    for name, tensor in state.items():
        if tensor.is_floating_point():
            identity = identity_of(tensor)
            if identity not in done:
                done[identity] = tensor.to(dtype)
            tensor = done[identity]
        tensors[name] = tensor
    return _like(state, tensors)


def completed(state: StateDict, module: nn.Module) -> StateDict:
    """A copy that also has the module's tied names: safetensors' own writer drops them."""
    tied: dict[tuple[object, ...], list[str]] = {}
    for slot in slots(module):
        if slot.saved and slot.tensor.numel():
            tied.setdefault(identity_of(slot.tensor), []).append(slot.key)
    tensors = dict(state)
    for names in tied.values():
        stored = next((name for name in names if name in state), None)
        if stored is not None:
            for name in names:
                tensors.setdefault(name, state[stored])
    return _like(state, tensors)


def fill(module: nn.Module, state: StateDict, where: str) -> None:
    """Load the state dict, which must have exactly the module's names. Raises SourceError."""
    try:
        module.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise SourceError(f"{where}: the checkpoint does not fit the class: {' '.join(str(error).split())}") from error
    relink(module)


def _like(state: StateDict, tensors: Mapping[str, torch.Tensor]) -> StateDict:
    result: Any = OrderedDict(tensors)
    if hasattr(state, "_metadata"):
        result._metadata = state._metadata
    return result  # type: ignore[no-any-return]


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"  # torch can map only this format of torch.save


def first_line(error: BaseException) -> str:
    """The first line of an error's text, for a message."""
    text = reason(error).strip().partition("\n")[0][:400] or type(error).__name__
    return f"{text}: {error.filename}" if isinstance(error, OSError) and error.filename else text
