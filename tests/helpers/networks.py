"""Factories for the torch family, importable by the worker: what `class = "torch:networks:…"` names."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm


class Tagger(nn.Module):
    """Has of everything that loading may forget: see the comments."""

    def __init__(self, words: int = 11, width: int = 6) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.lstm = nn.LSTM(width, width, num_layers=2, bidirectional=True, batch_first=True)  # lists its weights twice
        self.norm = nn.BatchNorm1d(2 * width)  # saved buffers, one of them a whole number
        self.project = weight_norm(nn.Linear(2 * width, width))  # a parametrized weight
        self.out = nn.Linear(width, words)
        self.out.weight = self.embedding.weight  # tied
        self.gate = nn.Linear(width, width)
        self.gates = nn.ModuleList([self.gate, self.gate])  # one module at three paths
        self.register_buffer("scale", torch.tensor(0.1), persistent=False)  # not in the state dict
        self.table = torch.linspace(0, 1, words)  # not even a buffer

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        states = self.lstm(self.embedding(words))[0]
        states = self.norm(states.transpose(1, 2)).transpose(1, 2)
        states = self.gates[1](self.gate(self.project(states)))
        scores: torch.Tensor = self.out(states) * self.scale + self.table
        return scores


def tagger(words: int = 11, width: int = 6) -> nn.Module:
    return Tagger(words, width)


def wide(width: int) -> nn.Module:
    """A layer whose weights take a while to write."""
    return nn.Linear(width, width)


def linear() -> nn.Module:
    return nn.Linear(3, 2)


def sized(folder: str | Path) -> nn.Module:
    """Reads how many inputs it has from a small file of the checkpoint."""
    return nn.Linear(json.loads((Path(folder) / "sizes.json").read_text())["inputs"], 2)


def pair() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))


def no_module() -> Any:
    return "a network"


def failing() -> nn.Module:
    raise RuntimeError("no such preset\nsecond line")


def leaving() -> nn.Module:
    sys.exit(0)


def chatty() -> nn.Module:
    print("printed by the factory")
    return nn.Linear(3, 2)
