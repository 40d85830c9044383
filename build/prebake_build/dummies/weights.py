"""Random tensors that are the same on every machine, generated in bounded memory.

Each tensor has its own stream, PCG64 seeded with (seed, sha256 of its name), so neither the order nor the number of
tensors matters. The values use only the generator's raw integers, which NumPy keeps stable between versions, and single
IEEE multiplications and additions, which every CPU rounds the same way. A normal distribution would need vectorised
logarithms, which differ between CPUs.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

CHUNK = 1 << 18
"""Number of values generated at once: 1 MiB, small enough for the CPU's cache."""

Array = NDArray[Any]
Edit = Callable[[Array], None]
"""A function that changes a whole tensor in place."""


class Fill(NamedTuple):
    """Uniform between `centre - spread` and `centre + spread`."""

    centre: float
    spread: float


NORM_WEIGHT = Fill(1.0, 2**-4)
BIAS = Fill(0.0, 2**-6)
WEIGHT = Fill(0.0, 2**-5)
"""Standard deviation 0.018, as these architectures' `initializer_range = 0.02` gives."""

Rules = Sequence[tuple[str, Fill]]
"""Regular expressions for the end of a tensor's name; the first match counts."""

BASIC_RULES: Rules = ((r"[Nn]orm\w*\.weight", NORM_WEIGHT), (r"bias", BIAS), (r".", WEIGHT))


@dataclass(frozen=True, kw_only=True, slots=True)
class Tensor:
    """A tensor whose values are generated on demand."""

    name: str
    dtype: str
    """NumPy's name: `float32`, `float16` or `int64`."""
    shape: tuple[int, ...]
    chunks: Callable[[], Iterator[Array]]
    """Its values from the first to the last, in flat pieces."""
    same_storage_as: str | None = None
    """The name of an earlier tensor of the same file whose storage this one shares."""

    @property
    def numel(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.numel * np.dtype(self.dtype).itemsize

    def array(self) -> Array:
        """All values at once."""
        return np.concatenate([*self.chunks()] or [np.empty(0, self.dtype)]).reshape(self.shape)


def random(seed: int, name: str, shape: Iterable[int], fill: Fill, *, dtype: str = "float32",
           stream: str | None = None, edit: Edit | None = None) -> Tensor:  # fmt: skip
    """A tensor of random values from the stream named `stream` (default: its own name). `edit` gets the whole tensor as
    float32 before it is cast to `dtype`, which takes the memory of the whole tensor."""
    shape = tuple(shape)

    def chunks() -> Iterator[Array]:
        pieces = _uniform(seed, stream or name, math.prod(shape), fill)
        if edit is None:
            return (piece.astype(dtype, copy=False) for piece in pieces)
        whole = np.concatenate(list(pieces)).reshape(shape)
        edit(whole)
        return iter([whole.astype(dtype, copy=False).reshape(-1)])

    return Tensor(name=name, dtype=dtype, shape=shape, chunks=chunks)


def constant(name: str, values: Array) -> Tensor:
    """A tensor of given values."""
    return Tensor(name=name, dtype=str(values.dtype), shape=values.shape, chunks=lambda: iter([values.reshape(-1)]))


def fill_for(name: str, rules: Rules) -> Fill:
    """The first rule that matches the end of `name`."""
    return next(fill for pattern, fill in rules if re.search(f"(?:{pattern})$", name))


def state_dict_of(build: Callable[[], Any]) -> tuple[dict[str, tuple[tuple[int, ...], str]], Mapping[str, Any]]:
    """Name → (shape, dtype) of a module's state dict, and the versions that `state_dict()` adds.

    `build` runs on the meta device, so it allocates nothing, and the shapes are upstream's own.
    """
    import torch

    with torch.device("meta"):
        state = build().state_dict()
    return (
        {name: (tuple(value.shape), str(value.dtype).removeprefix("torch.")) for name, value in state.items()},
        state._metadata,
    )


def _uniform(seed: int, name: str, count: int, fill: Fill) -> Iterator[NDArray[np.float32]]:
    digest = np.frombuffer(hashlib.sha256(name.encode()).digest(), "<u4")
    bits = np.random.PCG64(np.random.SeedSequence([seed, *map(int, digest)]))
    # 24 bits, because a float32 holds 24 exactly.
    scale, centre = np.float32(fill.spread * 2**-23), np.float32(fill.centre)
    for start in range(0, count, CHUNK):
        size = min(CHUNK, count - start)
        whole: NDArray[np.int32] = np.asarray(bits.random_raw((size + 1) // 2)).astype("<u8").view("<i4")[:size]
        values = (whole >> 8).astype(np.float32)
        values *= scale
        if fill.centre:
            values += centre
        yield values
