"""Loads BLIP with each method in a separate process, and measures time and memory.

The clock starts after the imports. It stops twice: when the module is usable, and when every page of its weights has
been touched, so the cost of lazy mappings is included. Cold means that the file's pages were dropped from the page
cache before. Rounds are interleaved.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

DEMO = Path(__file__).parent.parent / "dist" / "demo"
PAGE = os.sysconf("SC_PAGE_SIZE")


def prebake_mapped(files: Path) -> Any:
    from prebake.baked.model import BakedModel
    from prebake.tiers.loader import Loader

    return Loader(tiers=("mapped",)).module(BakedModel.open(files / "baked"))[0]


def from_pretrained_safetensors(files: Path) -> Any:
    from transformers import BlipForConditionalGeneration

    return BlipForConditionalGeneration.from_pretrained(files / "baked")


def from_pretrained_pickle(files: Path) -> Any:
    from transformers import BlipForConditionalGeneration

    return BlipForConditionalGeneration.from_pretrained(files / "pickle")


def torch_load_mmap(files: Path) -> Any:
    import torch

    model = _skeleton(files)
    state = torch.load(files / "pickle" / "pytorch_model.bin", mmap=True, weights_only=True)
    return _filled(model, state)


def tensorizer(files: Path) -> Any:
    from tensorizer import TensorDeserializer

    model = _skeleton(files)
    with TensorDeserializer(str(files / "model.tensors"), device="cpu") as state:
        return _filled(model, dict(state))


def fastsafetensors(files: Path) -> Any:
    from fastsafetensors import SafeTensorsFileLoader, SingleGroup

    model = _skeleton(files)
    loader = SafeTensorsFileLoader(SingleGroup(), "cpu", nogds=True)
    loader.add_filenames({0: [str(files / "baked" / "model.safetensors")]})
    buffer = loader.copy_files_to_device()
    return _filled(model, {name: buffer.get_tensor(name) for name in loader.get_keys()})


def runai_streamer(files: Path) -> Any:
    from runai_model_streamer import SafetensorsStreamer

    model = _skeleton(files)
    with SafetensorsStreamer() as streamer:
        streamer.stream_file(str(files / "baked" / "model.safetensors"))
        return _filled(model, {name: tensor.clone() for name, tensor in streamer.get_tensors()})


def read_once(files: Path) -> None:
    """Not a load: only reads the file in large pieces, as a lower bound for the cache or the disk."""
    read_through(files / "baked" / "model.safetensors")


def _skeleton(files: Path) -> Any:
    import torch
    from transformers import BlipConfig, BlipForConditionalGeneration

    with torch.device("meta"):
        return BlipForConditionalGeneration(BlipConfig.from_pretrained(files / "baked"))


def _filled(model: Any, state: dict[str, Any]) -> Any:
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    return model.eval()


METHODS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "prebake, mapped": (prebake_mapped, "prebake"),
    "from_pretrained, safetensors": (from_pretrained_safetensors, "transformers"),
    "from_pretrained, pickle": (from_pretrained_pickle, "transformers"),
    "torch.load(mmap=True)": (torch_load_mmap, "torch"),
    "Tensorizer": (tensorizer, "tensorizer"),
    "fastsafetensors": (fastsafetensors, "fastsafetensors"),
    "Run:ai streamer": (runai_streamer, "runai_model_streamer"),
    "the file read once, no load": (read_once, "prebake"),
}
"""Title → loader, and the package it needs."""


def one(method: str, files: Path) -> dict[str, float]:
    """Load once in this process, after all imports."""
    import importlib

    from prebake.families import compat
    from prebake.telemetry.timeline import Memory

    compat.torchvision_operators()
    load, package = METHODS[method]
    importlib.import_module(package)
    import torch
    from transformers import BlipForConditionalGeneration, GenerationMixin  # noqa: F401

    import prebake.families.transformers
    import prebake.modules.assembly
    import prebake.modules.structure  # noqa: F401

    torch.set_num_threads(1)
    before = Memory.now()
    started = time.perf_counter()
    model = load(files)
    usable = time.perf_counter() - started
    ranges = addresses(model) if model is not None else []
    touched = usable + touch(ranges)
    return {
        "usable": usable,
        "touched": touched,
        "private": Memory.now().anonymous - before.anonymous,
        "bytes": sum(length for _, length in ranges),
    }


def addresses(model: Any) -> list[tuple[int, int]]:
    """The memory ranges of a module's weights: address and size; adjacent ones merged, tied ones once."""
    found = sorted({(p.data_ptr(), p.nbytes) for p in model.parameters() if p.numel()})
    runs: list[list[int]] = []
    for begin, length in found:
        if runs and begin - sum(runs[-1]) <= PAGE:
            runs[-1][1] = max(runs[-1][1], begin + length - runs[-1][0])
        else:
            runs.append([begin, length])
    return [(begin, length) for begin, length in runs]


def touch(ranges: list[tuple[int, int]]) -> float:
    """Seconds to read one byte of every page. Reads by address, because a Python loop over 600 tensors would take as
    long as the page faults that it measures."""
    import numpy

    memories: list[Any] = [(ctypes.c_ubyte * length).from_address(begin) for begin, length in ranges]
    runs = [numpy.frombuffer(memory, dtype=numpy.uint8) for memory in memories]
    started = time.perf_counter()
    for run in runs:
        run[::PAGE].max()
        run[-1].max()
    return time.perf_counter() - started


def prepare(root: Path) -> None:
    """Links to the demo's files, and Tensorizer's own file."""
    root.mkdir(parents=True, exist_ok=True)
    for name, target in (("baked", DEMO / "models" / "caption"), ("pickle", DEMO / "checkpoints" / "caption")):
        if not target.is_dir():
            raise SystemExit(f"{target}: there is no such folder: run make demo first")
        link = root / name
        if not link.is_symlink():
            link.symlink_to(target.resolve())
    if not (root / "model.tensors").exists() and _installed("tensorizer"):
        from tensorizer import TensorSerializer

        from prebake.families import compat

        compat.torchvision_operators()
        part = root / "model.tensors.part"
        serializer = TensorSerializer(str(part))
        serializer.write_module(from_pretrained_safetensors(root))
        serializer.close()
        part.rename(root / "model.tensors")


def _installed(package: str) -> bool:
    from importlib.util import find_spec

    return find_spec(package) is not None


def every_file(files: Path) -> list[Path]:
    """The files that the methods read."""
    folders = (files, (files / "baked").resolve(), (files / "pickle").resolve())
    return [path for folder in folders for path in sorted(folder.iterdir()) if path.is_file()]


def drop_pages(files: Path) -> None:
    """Drop the files' pages from the page cache."""
    for path in every_file(files):
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def read_pages(files: Path) -> None:
    """Read every page into the page cache."""
    for path in every_file(files):
        read_through(path)


def read_through(path: Path) -> None:
    buffer = bytearray(1 << 20)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def main() -> None:
    from prebake_build.measure.report import machine, versions

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--files", type=Path, default=DEMO / "loads")
    parser.add_argument("--output", type=Path, default=DEMO.parent / "loads.json")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.one, options.files)))
        return
    prepare(options.files)
    methods = [method for method, (_, package) in METHODS.items() if _installed(package)]
    for method in METHODS.keys() - set(methods):
        print(f"{method}: not installed (benchmarks/peers.txt)", file=sys.stderr)
    taken: dict[str, dict[str, list[dict[str, float]]]] = {c: {m: [] for m in methods} for c in ("warm", "cold")}
    for number in range(options.rounds + 1):
        for cache in taken:
            for method in methods:
                (drop_pages if cache == "cold" else read_pages)(options.files)
                command = [sys.executable, __file__, "--one", method, "--files", str(options.files)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise SystemExit(f"{method} failed:\n{done.stderr[-2000:]}")
                if number:
                    taken[cache][method].append(json.loads(done.stdout.splitlines()[-1]))
    for cache, samples in taken.items():
        print(table(cache, samples))
    document = {"versions": versions(), "machine": machine(), "samples": taken}
    options.output.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def table(cache: str, samples: dict[str, list[dict[str, float]]]) -> str:
    """The table for one cache state: medians with their range, and Prebake's ratio to each method."""
    rounds = len(next(iter(samples.values())))
    lines = [f"\n{cache} cache, {rounds} rounds: median (lowest to highest)"]
    lines.append(f"{'':30}{'usable, ms':>26}{'every page touched, ms':>28}{'private, MB':>14}{'ratio':>8}")
    touched = {method: statistics.median(sample["touched"] for sample in rows) for method, rows in samples.items()}
    for method, rows in samples.items():
        cells = [_spread([row[key] * 1000 for row in rows]) for key in ("usable", "touched")]
        private = statistics.median(row["private"] for row in rows) / 1e6
        ratio = touched["prebake, mapped"] / touched[method]
        lines.append(f"{method:30}{cells[0]:>26}{cells[1]:>28}{private:>14,.0f}{ratio:>8.2f}")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"


if __name__ == "__main__":
    main()
