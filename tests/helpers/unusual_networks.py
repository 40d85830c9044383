"""Networks that keep tensors where frameworks do not look, or whose constructors do what skeletons do not allow.

Baked folders name each factory as `helpers.unusual_networks:NAME`; called without input, each gives one tensor
that depends on everything it holds.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils import parametrizations


class _Pair(NamedTuple):
    mean: torch.Tensor
    name: str


class _Helper:
    def __init__(self) -> None:
        self.table = torch.rand(3)
        self.nested: dict[str, list[torch.Tensor]] = {"deep": [torch.rand(3)]}


class Keeps(nn.Module):
    """Tensors in containers, in an object, in modules that are not registered, and one that points back."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.listed: list[Any] = [torch.rand(3), [torch.rand(3)]]
        self.named = {"a": torch.rand(3), 7: torch.rand(3)}
        self.fixed = (torch.rand(3), "text", torch.rand(3))
        self.pair = _Pair(torch.rand(3), "name")
        self.helper = _Helper()
        self.hidden: list[Any] = [nn.Linear(3, 3), nn.BatchNorm1d(3)]
        self.parent = [self]
        self.same = [self.layer.weight]

    def forward(self) -> torch.Tensor:
        values = self.listed[0] + self.listed[1][0] + self.named["a"] + self.named[7] + self.fixed[0] + self.fixed[2]
        values = values + self.pair.mean + self.helper.table + self.helper.nested["deep"][0] + self.same[0].sum()
        result: torch.Tensor = self.layer(self.hidden[0](values)) + self.hidden[1].weight
        return result


class Extra(nn.Module):
    """Says more in its state dict than its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(3))
        self.steps = torch.randint(100, (4,)).tolist()

    def get_extra_state(self) -> torch.Tensor:
        return torch.tensor(self.steps)

    def set_extra_state(self, state: torch.Tensor) -> None:
        self.steps = state.tolist()

    def forward(self) -> torch.Tensor:
        result: torch.Tensor = self.weight * sum(self.steps)
        return result


class Slices(nn.Module):
    """Parameters that are overlapping views of one storage, and one that is not contiguous."""

    def __init__(self) -> None:
        super().__init__()
        whole = torch.rand(6, 4)
        self.first = nn.Parameter(whole[:3])
        self.second = nn.Parameter(whole[2:5])
        self.column = nn.Parameter(whole[:, 1])
        self.register_buffer("expanded", torch.rand(1, 4).expand(3, 4))

    def forward(self) -> torch.Tensor:
        return (self.first + self.second + self.get_buffer("expanded")).sum(0) + self.column[:4]


class Types(nn.Module):
    """Weights in eight bits and in sixteen."""

    def __init__(self) -> None:
        super().__init__()
        self.small = nn.Parameter(torch.randn(5, 3).to(torch.float8_e4m3fn), requires_grad=False)
        self.wide = nn.Parameter(torch.randn(5, 3).to(torch.float8_e5m2), requires_grad=False)
        self.whole = nn.Parameter(torch.randint(-128, 127, (5, 3), dtype=torch.int8), requires_grad=False)
        self.sixteen = nn.Parameter(torch.randn(5, 3, dtype=torch.float16))
        self.brain = nn.Parameter(torch.randn(5, 3, dtype=torch.bfloat16))
        self.register_buffer("packed", torch.randint(0, 255, (5, 3), dtype=torch.uint8))
        self.register_buffer("mask", torch.rand(5, 3) > 0.5)

    def forward(self) -> torch.Tensor:
        held = [self.small, self.wide, self.whole, self.sixteen, self.brain, *self.buffers()]
        return torch.stack([tensor.float() for tensor in held]).sum(0)


class Mixes(nn.Module):
    """Its constructor joins what has values with what has none."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.joined = nn.Parameter(torch.cat([self.layer.weight.detach(), torch.zeros(1, 3)]))

    def forward(self) -> torch.Tensor:
        result: torch.Tensor = self.layer(self.joined)
        return result


class Looks(nn.Module):
    """Its constructor looks at random values."""

    def __init__(self) -> None:
        super().__init__()
        start = torch.randn(3)
        self.weight = nn.Parameter(start if start.sum() > -100 else -start)

    def forward(self) -> torch.Tensor:
        return self.weight * 2


class Parametrized(nn.Module):
    """Weights that are computed from others, in torch's three ways."""

    def __init__(self) -> None:
        super().__init__()
        self.weight_norm = parametrizations.weight_norm(nn.Linear(3, 3))
        self.spectral = parametrizations.spectral_norm(nn.Linear(3, 3))
        self.orthogonal = parametrizations.orthogonal(nn.Linear(3, 3))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated, and what older checkpoints were made with
            self.older = nn.utils.weight_norm(nn.Linear(3, 3))

    def forward(self) -> torch.Tensor:
        values = torch.ones(2, 3)
        for layer in self.children():
            values = layer(values)
        return values


class Recurrent(nn.Module):
    """LSTM and GRU with all they offer; both keep a second list of their weights."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, num_layers=2, bidirectional=True, proj_size=3)
        self.gru = nn.GRU(6, 4, bias=False, batch_first=True)

    def forward(self) -> torch.Tensor:
        result: torch.Tensor = self.gru(self.lstm(torch.ones(5, 2, 4))[0])[0]
        return result


class Unnamed(nn.Module):
    """A tensor in a set: nothing tells which it is."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.kept = {torch.ones(3)}

    def forward(self) -> torch.Tensor:
        result: torch.Tensor = self.layer(next(iter(self.kept)))
        return result


NETWORKS: tuple[Any, ...] = (Keeps, Extra, Slices, Types, Mixes, Looks, Parametrized, Recurrent)
