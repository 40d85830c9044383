"""What a start costs on 1 to 1,000 nodes, worked out from one node's figures: a model, not a measurement.

`python benchmarks/fleet.py --megabytes 1901 --after-link 11 --start 3`, with figures of benchmarks/cold_node.py.
All nodes start at once with empty stores. For each way, seconds until the last node answers, and what leaves the
registry. The assumptions are the functions below, and the options.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass

NODES = (1, 10, 100, 1000)


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """One node's figures, and the network's."""

    megabytes: float
    """Of the image, as it travels."""
    after_link: float
    """Seconds of the pull after the last bytes came (decompression and unpacking that the link did not hide)."""
    start: float
    """Seconds from the created container to the first answer."""
    touched: float
    """Megabytes that a start and its first request read: what a lazy snapshotter has to fetch before the answer."""
    node: float
    """Gbit/s of a node's link, both ways."""
    registry: float
    """Gbit/s that the registry can send in all."""
    efficiency: float
    """Share of a node's link that peer-to-peer uses for useful bytes."""
    requests: float
    """Share of the link that small reads on demand reach."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one fleet's start."""

    seconds: float
    gigabytes: float
    """From the registry."""


def from_registry(fleet: Fleet, nodes: int) -> Cost:
    """Every node pulls everything: the registry's link is shared, a node's own is the lower limit."""
    seconds = max(_seconds(fleet.megabytes, fleet.node), _seconds(fleet.megabytes * nodes, fleet.registry))
    return Cost(seconds=seconds + fleet.after_link + fleet.start, gigabytes=fleet.megabytes * nodes / 1e3)


def dragonfly(fleet: Fleet, nodes: int) -> Cost:
    """Pieces are passed on while they arrive: the registry sends everything once, and each node as much as it gets."""
    if nodes == 1:
        return from_registry(fleet, nodes)
    seconds = _seconds(fleet.megabytes, min(fleet.node * fleet.efficiency, fleet.registry))
    return Cost(seconds=seconds + fleet.after_link + fleet.start, gigabytes=fleet.megabytes / 1e3)


def spegel(fleet: Fleet, nodes: int, seeds: int = 1) -> Cost:
    """Whole layers are passed on: `seeds` nodes have pulled, then every node that has it serves one more per wave."""
    seeds = min(seeds, nodes)
    waves = math.ceil(math.log2(nodes / seeds))
    first = from_registry(fleet, seeds)
    seconds = first.seconds + waves * _seconds(fleet.megabytes, fleet.node * fleet.efficiency)
    return Cost(seconds=seconds, gigabytes=first.gigabytes)


def lazily(fleet: Fleet, nodes: int) -> Cost:
    """SOCI, stargz: the start fetches what it touches, in small reads; the rest comes later, and counts as traffic."""
    seconds = max(_seconds(fleet.touched, fleet.node * fleet.requests), _seconds(fleet.touched * nodes, fleet.registry))
    return Cost(seconds=seconds + fleet.start, gigabytes=fleet.megabytes * nodes / 1e3)


WAYS: dict[str, Callable[[Fleet, int], Cost]] = {
    "registry": from_registry, "Spegel": spegel, "Dragonfly": dragonfly, "lazy snapshotter": lazily,
}  # fmt: skip


def _seconds(megabytes: float, gigabits: float) -> float:
    return megabytes * 8 / 1e3 / gigabits


def table(fleet: Fleet) -> str:
    """Rows of Markdown."""
    heads = " | ".join(f"{nodes:,} node{'s' * (nodes > 1)}" for nodes in NODES)
    lines = [f"| way | {heads} |", "|---" * (len(NODES) + 1) + "|"]
    for name, way in WAYS.items():
        costs = [way(fleet, nodes) for nodes in NODES]
        lines.append(f"| {name} | " + " | ".join(f"{c.seconds:,.0f} s, {c.gigabytes:,.0f} GB" for c in costs) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, required=True, help="of the image, over the link")
    parser.add_argument(
        "--after-link", type=float, required=True, help="seconds of the pull beyond what its bytes take on the link"
    )
    parser.add_argument("--start", type=float, required=True, help="seconds from the container to the first answer")
    parser.add_argument("--touched", type=float, default=2100, help="MB that a start and an answer read (2100)")
    parser.add_argument("--node", type=float, default=10, help="Gbit/s of a node (10)")
    parser.add_argument("--registry", type=float, default=25, help="Gbit/s of the registry (25)")
    parser.add_argument("--efficiency", type=float, default=0.5, help="of peer-to-peer (0.5)")
    parser.add_argument("--requests", type=float, default=0.2, help="of reads on demand (0.2)")
    print(table(Fleet(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
