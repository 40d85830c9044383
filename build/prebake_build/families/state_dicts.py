"""Reads a checkpoint file as a state dict of names and tensors, without running code from the file.

Pickles are read with `weights_only=True`: they may construct only tensors and containers; other files are refused. A
pickled state dict also has the version of each module (`_metadata`), which modules use to read state dicts of older
versions: it is kept.
"""

from __future__ import annotations

import fnmatch
import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prebake.documents.messages import nearest, quote, reason
from prebake.errors import ConfigError, SourceError
from prebake.modules.assembly import identity_of, relink, slots
from prebake.weights.tensors import map_tensors
from prebake_build.families.files import first_five, some
from prebake_build.families.spill import spilled

StateDict = Mapping[str, torch.Tensor]

_WANTED = re.compile(r"GLOBAL ([\w.]+)")
_WHY = re.compile(r"WeightsUnpickler error:\s*(\S.*)")


def read_state_dict(path: Path, where: str, key: str | None = None) -> StateDict:
    """The tensors of a pickle or a safetensors file, mapped if the format allows it; with `key`, those under that key
    of the file's object (`state_dict`, or a path of keys joined by dots).

    Raises SourceError if the file is damaged, would run code, or holds anything but names and tensors there,
    ConfigError if there is no such key, and TensorFileError for a damaged safetensors file.
    """
    state = read_checkpoint(path, where)
    if key is not None:
        state = under(state, key, path.name, where)
    if not _is_state_dict(state):
        raise SourceError(f"{where}: {path.name} {_no_state_dict(state, key)}")
    return state  # type: ignore[no-any-return]


def read_checkpoint(path: Path, where: str) -> Any:
    """The object of a pickle, or the tensors of a safetensors file by name, mapped if the format allows it.

    Raises SourceError if the file is damaged or would run code, and TensorFileError for a damaged safetensors file.
    """
    if path.suffix == ".safetensors":
        return map_tensors(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        raise refusal(error, f"{where}: {path.name}") from error
    except Exception as error:  # the unpickler checks little: a damaged file raises KeyError or any other
        if "TorchScript" in str(error):
            raise SourceError(
                f"{where}: {path.name} is a TorchScript program, which holds code: save its state dict instead, "
                "torch.save(torch.jit.load(file).state_dict(), other_file)"
            ) from error
        raise SourceError(f"{where}: {path.name} is not a readable checkpoint: {first_line(error)}") from error


def under(found: Any, key: str, name: str, where: str) -> Any:
    """What stands in the object `found` of the file `name` under the key, or under the path of keys joined by dots.

    Raises ConfigError that lists the keys that there are.
    """
    if isinstance(found, Mapping) and key in found:
        return found[key]
    for part in key.split("."):
        if not isinstance(found, Mapping) or part not in found:
            known = [str(other) for other in found] if isinstance(found, Mapping) else []
            raise ConfigError(
                f"{where}.key: {name} has no {quote(part)} "
                f"({'it has ' + first_five(known) if known else 'there are no keys'}){nearest(part, known)}"
            )
        found = found[part]
    return found


def _is_state_dict(found: Any) -> bool:
    return isinstance(found, Mapping) and all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in found.items()
    )


def _no_state_dict(found: Any, key: str | None) -> str:
    """What the file holds instead, and the key that leads to a state dict."""
    place = "" if key is None else f" under {quote(key)}"
    plain = f"does not contain a state dict{place} (expected names and tensors only)"
    if not isinstance(found, Mapping):
        return plain
    inner = {str(name): value for name, value in found.items() if isinstance(value, Mapping) and _is_state_dict(value)}
    nested = sorted((name for name in inner if inner[name]), key=lambda name: -len(inner[name]))
    if not nested:
        return plain
    others = [str(name) for name in found if str(name) not in nested]
    begin = "" if key is None else f"{key}."
    listed = ", ".join(f"{quote(begin + name)} ({len(inner[name]):,} tensors)" for name in nested[:5])
    rest = f", and {first_five(others)} beside" if others else ""
    return (
        f"is nested{place}: its state dict is one of {listed}{rest}: "
        f"add key = {quote(begin + nested[0])} to the model's table"
    )


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
                done[identity] = spilled(tensor.to(dtype))
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


def without(state: StateDict, patterns: Sequence[str], module: nn.Module, where: str) -> StateDict:
    """A copy without the tensors that the patterns (of shells) match.

    Raises ConfigError if a pattern matches none, or one that the module has.
    """
    built = module.state_dict().keys() if patterns else ()
    ignored: set[str] = set()
    for pattern in patterns:
        matched = set(fnmatch.filter(state, pattern))
        if not matched:
            raise ConfigError(f"{where}.ignore: {quote(pattern)} matches no tensor of the checkpoint")
        if wanted := matched.intersection(built):
            raise ConfigError(f"{where}.ignore: {quote(pattern)} matches tensors that the class has: {some(wanted)}")
        ignored |= matched
    return _like(state, {name: tensor for name, tensor in state.items() if name not in ignored})


def fill(module: nn.Module, state: StateDict, where: str) -> None:
    """Load the state dict, which must have exactly the module's names. Raises SourceError."""
    try:
        module.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise SourceError(f"{where}: the checkpoint does not fit the class: {_misfit(error)}") from error
    relink(module)


_MISSING = re.compile(r"^Missing key\(s\) in state_dict: (.*)$", re.MULTILINE)
_UNEXPECTED = re.compile(r"^Unexpected key\(s\) in state_dict: (.*)$", re.MULTILINE)
_NAME = re.compile(r'"([^"]+)"')
_SIZE = re.compile(r"^size mismatch for (\S+): .*?Size\(\[(.*?)\]\).*?Size\(\[(.*?)\]\)", re.MULTILINE)


def _misfit(error: RuntimeError) -> str:
    """torch's message with the first five names of each kind, and how many there are."""
    text = "\n".join(line.strip() for line in str(error).splitlines())
    missing, unexpected = (
        [name for line in kind.findall(text) for name in _NAME.findall(line)] for kind in (_MISSING, _UNEXPECTED)
    )
    sizes = [
        f"{name} is ({saved}) in the checkpoint and ({built}) in the class"
        for name, saved, built in _SIZE.findall(text)
    ]
    found = []
    if missing:
        found.append(f"it lacks {len(missing):,} tensors of the class: {first_five(missing)}")
    if unexpected:
        found.append(f"it has {len(unexpected):,} that the class lacks: {first_five(unexpected)}")
        if not missing and not sizes:
            found.append('if the network does without them, name them: ignore = ["…"]')
    if sizes:
        more = f", and {len(sizes) - 5:,} more" if len(sizes) > 5 else ""
        found.append(f"{len(sizes):,} have another shape: {', '.join(sizes[:5])}{more}")
    return "; ".join(found) or " ".join(text.split())[:400]


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
