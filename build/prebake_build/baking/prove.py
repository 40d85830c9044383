"""Proves that a baked model equals its checkpoint: compares every tensor bit by bit, through the runtime's loader."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

from prebake.baked.model import BakedModel
from prebake.errors import IntegrityError, LoadError
from prebake.modules.assembly import slots
from prebake.tiers.loader import Loader
from prebake_build.baking.tensor_files import Verified
from prebake_build.files import progress
from prebake_build.files.pages import Mappings, are_equal, elements


def prove(
    ordinary: nn.Module, folder: Path, allow: tuple[str, ...] = (), verified: Verified | None = None
) -> nn.Module | None:
    """Load the folder as the runtime would, and compare it with the ordinary load of the checkpoint.

    The mapped module must have every tensor, including those that a state dict does not save. The framework's own
    loader must give every saved tensor from the baked folder, so the fallback gives the same model. If the model can't
    be mapped, prints a warning that names the fallback. `allow` lists the Python modules whose code may build the
    model. Returns the mapped module, or None. Raises IntegrityError that lists the differences.

    A tensor that is a view of bytes in `verified`, unchanged in memory and on disk, is not read again: the writer
    compared them with the ordinary load's.
    """
    verified = verified or Verified()
    expected = {slot.key: slot.tensor for slot in slots(ordinary) if not slot.tensor.is_meta}
    saved = {slot.key: slot.tensor for slot in slots(ordinary) if slot.saved}
    baked = BakedModel.open(folder)
    mapped = None
    try:
        mapped = Loader(tiers=("mapped",), allow=allow).module(baked)[0]
    except LoadError as error:
        print(f"{baked.name}: every start will fall back to the ordinary load: {error}", file=sys.stderr)
    else:
        _compare(expected, mapped, verified, folder, "mapped")
    fallback = Loader(tiers=("ordinary",), allow=allow).module(baked)[0]
    _compare(saved, fallback, verified, folder, "loaded by its own framework")
    return mapped


def _compare(expected: dict[str, torch.Tensor], module: nn.Module, verified: Verified, folder: Path, how: str) -> None:
    mappings = Mappings()
    found = {slot.key: slot.tensor for slot in slots(module)}
    findings = [f"{key}: missing" for key in expected if key not in found]
    for key, tensor in expected.items():
        unproven = key in found and not verified.holds(tensor, found[key], mappings)
        if unproven and (difference := difference_of(tensor, found[key])):
            findings.append(f"{key}: {difference}")
        progress.add(tensor.numel() * tensor.element_size())
    if findings:
        raise IntegrityError(
            f"{folder.name}: {how}, the baked model differs from the ordinary load of its checkpoint:\n  "
            + "\n  ".join(findings[:10])
            + (f"\n  and {len(findings) - 10} more" if len(findings) > 10 else "")
        )


def difference_of(expected: torch.Tensor, found: torch.Tensor) -> str | None:
    """How two tensors differ, or None if dtype, shape and every bit (NaN included) are equal."""
    if expected.dtype != found.dtype:
        return f"expected {expected.dtype}, found {found.dtype}"
    if expected.shape != found.shape:
        return f"expected shape {tuple(expected.shape)}, found {tuple(found.shape)}"
    if expected.is_meta or found.is_meta:
        return f"{'expected' if expected.is_meta else 'found'} without values"
    if not expected.numel() or _are_equal(expected, found):
        return None
    wrong = int((_bits(expected) != _bits(found)).any(dim=-1).sum())
    return f"{wrong:,} of {expected.numel():,} values differ"


def _are_equal(expected: torch.Tensor, found: torch.Tensor) -> bool:
    one, other = elements(expected), elements(found)
    if one is not None and other is not None:  # four times as fast as torch.equal on bytes
        return are_equal(one[0], other[0], one[1])
    return torch.equal(_bits(expected), _bits(found))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """The elements' bytes: shape (number of elements, bytes per element)."""
    whole = tensor.detach().resolve_conj().resolve_neg().contiguous()
    # a single element is contiguous with any strides, but view() requires strides of 1
    whole = whole.as_strided((whole.numel(), 1), (1, 1))
    if whole.is_complex():
        whole = torch.view_as_real(whole).reshape(-1, 2)
    return whole.view(torch.uint8)
