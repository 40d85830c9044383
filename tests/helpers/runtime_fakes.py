"""Small stand-ins for the runtime's tests: manifests, files of weights, baked torch models, other processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prebake.baked import layout
from prebake.baked.manifest import File, Loading, Manifest, Source, Weights

if TYPE_CHECKING:
    from torch import nn

SHA = "ab" * 32


def manifest_of(name: str = "caption", **changes: Any) -> Manifest:
    """A manifest that is right in itself; no folder belongs to it."""
    values: dict[str, Any] = {
        "name": name,
        "family": "torch",
        "class_": "helpers.runtime_fakes:plain",
        "source": Source(uri="hf:org/name@main", revision="commit:" + "0" * 40),
        "files": (File(path=layout.WEIGHTS, size=10, sha256=SHA),),
        "weights": Weights(files=(layout.WEIGHTS,), buffers=None, tensors=1, bytes=2, dtypes={"F16": 1}),
        "converter": {"prebake-build": "0.1.0"},
    }
    return Manifest(**values | changes)


def write_manifest(root: Path, manifest: Manifest) -> Path:
    """The model's folder under the root, with files of the right sizes and nothing in them."""
    folder = root / manifest.name
    folder.mkdir(parents=True)
    for file in manifest.files:
        (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
        (folder / file.path).write_bytes(bytes(file.size))
    (folder / layout.MANIFEST).write_text(manifest.text, encoding="utf-8")
    return folder


def change_manifest(folder: Path, **changes: Any) -> None:
    """Replace keys of a baked folder's manifest, as somebody with an editor would."""
    path = folder / layout.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def safetensors_bytes(header: object, data: bytes = b"") -> bytes:
    """A file of weights with that header, right or wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def bake_module(
    root: Path, name: str, factory: str, *, loading: Loading | None = None, arguments: Mapping[str, Any] | None = None
) -> tuple[Path, nn.Module]:
    """Bake `module:factory` in this process; its folder, and the module whose tensors it holds."""
    from prebake.families.torch_module import build
    from prebake_build.baking.convert import tensors_of
    from prebake_build.baking.tensor_files import write_tensors
    from prebake_build.baking.worker import _weights
    from prebake_build.files.digest import file_of

    folder = root / name
    folder.mkdir(parents=True)
    module = build(factory, arguments or {}, "test", allow=[factory.partition(":")[0]]).eval()
    taken = tensors_of(module, "test")
    write_tensors(folder / layout.WEIGHTS, taken.state)
    if taken.hidden:
        write_tensors(folder / layout.BUFFERS, taken.hidden)
    names = sorted(path.name for path in folder.iterdir())
    manifest = manifest_of(
        name,
        class_=factory,
        options={"arguments": dict(arguments or {})},
        loading=loading or Loading(),
        files=tuple(file_of(folder, path) for path in names),
        weights=_weights(taken, {layout.WEIGHTS: ""}),
    )
    (folder / layout.MANIFEST).write_text(manifest.text, encoding="utf-8")
    return folder, module


def python(code: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a new interpreter that can import the tests' helpers. Asserts nothing."""
    path = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path)} | environment,
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def python_says(code: str, *arguments: object, **environment: str) -> str:
    """What the program prints. Asserts that it ended well."""
    done = python(code, *arguments, **environment)
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout.strip()


# Networks that baked folders name as `helpers.runtime_fakes:NAME`.


def plain(width: int = 4) -> nn.Module:
    """Two layers and a buffer."""
    from torch import nn

    return nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.Linear(width, 2))


def big() -> nn.Module:
    """One layer of 64 MB."""
    from torch import nn

    return nn.Linear(4096, 4096, bias=False)


def odd() -> nn.Module:
    """Its constructor looks at values, keeps tensors everywhere, ties weights, and has an LSTM."""
    import torch
    from torch import nn

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rates = [rate.item() for rate in torch.linspace(0, 0.1, 3)]
            self.sizes = torch.arange(4).tolist()
            self.embedding = nn.Embedding(7, 4, padding_idx=0)
            self.out = nn.Linear(4, 7, bias=False)
            self.out.weight = self.embedding.weight
            self.lstm = nn.LSTM(4, 4, num_layers=2, bidirectional=True)
            self.gru = nn.GRU(8, 4)
            self.register_buffer("saved", torch.rand(3))
            self.register_buffer("unsaved", torch.arange(3.0).exp(), persistent=False)
            self.register_buffer("none", None)
            self.table = torch.full((2, 2), 3.0)
            self.scale = nn.Parameter(torch.empty(4).uniform_(1, 2))
            self.frozen = nn.Parameter(torch.randn(4), requires_grad=False)
            nn.init.trunc_normal_(self.out.weight, std=0.02)

        def forward(self, words: torch.Tensor) -> Any:
            hidden = self.embedding(words) * self.scale + self.frozen
            hidden = self.gru(self.lstm(hidden)[0])[0]
            return (
                self.out(hidden) * self.get_buffer("unsaved").sum() + self.table.sum() + self.get_buffer("saved").mean()
            )

    return Odd()


def with_list(depth: int = 1) -> nn.Module:
    """Keeps a random tensor where no name leads to it: in a list, at that depth."""
    import torch
    from torch import nn

    module = nn.Linear(2, 2)
    kept: Any = torch.rand(3)
    for _ in range(depth):
        kept = [kept]
    module.kept = kept
    return module


def looking() -> nn.Module:
    """Its constructor looks at a random value, which a skeleton does not have."""
    import torch
    from torch import nn

    return nn.Linear(2, 2 + int(torch.rand(1).item() > 2))
