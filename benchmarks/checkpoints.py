"""Writes large checkpoints with random weights in the shapes of real architectures, sharded as the hub has them.

python benchmarks/checkpoints.py qwen3-4b DIR                    8.0 GB, safetensors
python benchmarks/checkpoints.py qwen3-4b DIR --format pickle    the same as pytorch_model-0000N-of-0000M.bin
python benchmarks/checkpoints.py qwen3-30b-a3b DIR --layers 6    7.7 GB, experts that transformers fuses as it loads
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from prebake.families import compat

SHARD = 2 * 10**9
"""Bytes of tensors in a shard at most."""
FORMATS = {"safetensors": "model{}.safetensors", "pickle": "pytorch_model{}.bin"}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    # config.json of Qwen/Qwen3-4B: 4.02 billion parameters in bfloat16
    "qwen3-4b": ("Qwen3", {
        "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True,
        "max_position_embeddings": 40960,
    }),
    # config.json of Qwen/Qwen3-30B-A3B, whose 48 layers have 61 GB: --layers takes some of them
    "qwen3-30b-a3b": ("Qwen3Moe", {
        "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 6, "num_attention_heads": 32,
        "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936, "num_experts": 128,
        "num_experts_per_tok": 8, "moe_intermediate_size": 768,
    }),
}  # fmt: skip


def names_of(module: Any) -> Iterator[tuple[str, torch.Size]]:
    """Names and shapes as published: experts one by one."""
    tied = (getattr(module, "_tied_weights_keys", None) or {}) if module.config.tie_word_embeddings else {}
    for name, tensor in module.state_dict().items():
        layer, experts, part = name.partition(".mlp.experts.")
        if name in tied:
            continue
        if not experts:
            yield name, tensor.shape
            continue
        rows, columns = tensor.shape[1:]
        for expert in range(tensor.shape[0]):
            if part == "gate_up_proj":
                yield f"{layer}.mlp.experts.{expert}.gate_proj.weight", torch.Size((rows // 2, columns))
                yield f"{layer}.mlp.experts.{expert}.up_proj.weight", torch.Size((rows // 2, columns))
            else:
                yield f"{layer}.mlp.experts.{expert}.down_proj.weight", torch.Size((rows, columns))


def write(architecture: str, folder: Path, format_: str, layers: int | None) -> None:
    """Write the checkpoint into a new folder."""
    import transformers

    compat.torchvision_operators()
    prefix, values = ARCHITECTURES[architecture]
    values = values | ({} if layers is None else {"num_hidden_layers": layers})
    config = getattr(transformers, f"{prefix}Config")(**values)
    config.architectures, config.dtype = [f"{prefix}ForCausalLM"], torch.bfloat16
    with torch.device("meta"):
        module = getattr(transformers, f"{prefix}ForCausalLM")(config)
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    shards: list[list[tuple[str, torch.Size]]] = [[]]
    size = 0
    for name, shape in names_of(module):
        if shards[-1] and size + 2 * shape.numel() > SHARD:
            shards.append([])
            size = 0
        shards[-1].append((name, shape))
        size += 2 * shape.numel()
    source = (torch.randn(2**24 + 8191, generator=torch.Generator().manual_seed(1)) * 0.02).bfloat16()
    index: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = FORMATS[format_].format(f"-{number:05}-of-{len(shards):05}")
        tensors = {name: values_of(source, name, shape) for name, shape in names}
        if format_ == "safetensors":
            save_file(tensors, folder / file, {"format": "pt"})
        else:
            torch.save(tensors, folder / file)
        index |= dict.fromkeys(tensors, file)
        print(f"{file}: {sum(2 * tensor.numel() for tensor in tensors.values()):,} bytes", flush=True)
    document = {"metadata": {"total_size": 0}, "weight_map": index}
    (folder / f"{FORMATS[format_].format('')}.index.json").write_text(json.dumps(document, indent=2), encoding="utf-8")


def values_of(source: torch.Tensor, name: str, shape: torch.Size) -> torch.Tensor:
    """A stretch of the random values that begins where the name says, repeated."""
    count = shape.numel()
    begin = sum(name.encode()) * 7919 % (len(source) // 2)
    part = source[begin:]
    return part.repeat(-(-count // len(part)))[:count].reshape(shape).clone()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("architecture", choices=ARCHITECTURES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--format", choices=FORMATS, default="safetensors")
    parser.add_argument("--layers", type=int)
    options = parser.parse_args()
    write(options.architecture, options.folder, options.format, options.layers)


if __name__ == "__main__":
    main()
