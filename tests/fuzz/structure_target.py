"""The target `structure`: documents that `structure.restore` must read or refuse, and nothing beside that.

What a structure does happens inside one call, and `restore` turns every exception in there into a LoadError. So what
must not happen is watched from outside: by an audit hook, by the peak of resident memory, and by comparing each class
that the structure was given with what it was before.
"""

from __future__ import annotations

import hashlib
import json
import resource
import sys
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import nn

from fuzz import mutators
from fuzz.targets import FindingError, Target, new_folder
from helpers.runtime_fakes import manifest_of
from prebake.baked import layout
from prebake.baked.manifest import File, Weights
from prebake.baked.model import BakedModel
from prebake.errors import IntegrityError, LoadError
from prebake.families import compat
from prebake.families.transformers import TransformersFamily
from prebake.modules import structure
from prebake_build.baking.structures import structure_of

_GROWTH = 256 * 1024**2
"""Bytes by which one input may raise the peak of resident memory; no input is larger than a few kilobytes."""

_REFUSED_EVENTS = frozenset({
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "subprocess.Popen", "pty.spawn",
    "socket.connect", "socket.bind", "socket.getaddrinfo", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.chmod",
    "os.symlink", "os.link", "os.truncate", "os.putenv", "shutil.rmtree", "ctypes.dlopen",
})  # fmt: skip


_ODD_VALUES: tuple[Any, ...] = (
    ["object", 0], ["object", -1], ["class", 0], ["member", 0, "__class__"], ["folder"], ["dtype", "load"],
    ["dtype", "float32"], ["device", "meta"], ["size", 2**40], ["list", ["list"]], ["set", ["list"]], ["dict", [1]],
    ["function", "os:system"], ["function", "torch.nn.functional:gelu"], ["partial", "os:system", ["tuple"], ["dict"]],
    ["value"], ["_value", 1], ["__class__"], ["tensor", "0.weight", True, True], ["tensor", "x", False, False],
    "os:system", "builtins:eval", "torch.fx.graph_module:GraphModule", "torch.fx._lazy_graph_module:_LazyGraphModule",
    "torch.jit._script:ScriptModule", "torch.nn.modules.linear:Linear", "torch.nn.modules.linear:torch.load",
    "torch.nn.modules.rnn:LSTM", "torch.utils.model_dump.__main__:x", "torch.nn.modules.__main__:x", ["dtype", "onnx"],
    "torch.nn.modules.linear:torch.onnx", "transformers.models.bert.modular_bert:BertConfig",
    "transformers.models.auto.modeling_auto:AutoModel", "transformers.utils.hub:os.system",
    "__class__", "__dict__", "_modules", "_parameters", "_flat_weights_names", "forward", "training",
)  # fmt: skip


def _networks() -> list[nn.Module]:
    from transformers import BertConfig, BertModel

    small = BertConfig(hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4, vocab_size=5)
    plain = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.GELU(), nn.LSTM(2, 2)).eval()
    return [nn.Identity().eval(), plain, BertModel(small).eval()]


def _attributes(found: Any) -> dict[str, Any]:
    """What can be set on a class or function."""
    own = dict(vars(found)) if hasattr(found, "__dict__") else {}
    defaults = {
        key: getattr(found, key) for key in ("__defaults__", "__kwdefaults__", "__code__") if hasattr(found, key)
    }
    return own | defaults


class StructureCheck:
    """One input: a byte that chooses whose tensors are there, then the document."""

    def __init__(self) -> None:
        from prebake_build.baking.tensor_files import write_tensors

        compat.torchvision_operators()
        self._family = TransformersFamily()
        self._folders: list[Path] = []
        self._tensors: list[dict[str, torch.Tensor]] = []
        self._weights: list[Weights] = []
        self._seeds: list[bytes] = []
        for network in _networks():
            folder = new_folder()
            held = {key: tensor.detach() for key, tensor in (*network.named_parameters(), *network.named_buffers())}
            write_tensors(folder / layout.WEIGHTS, held)
            self._folders.append(folder)
            self._tensors.append(held)
            self._weights.append(Weights(files=(layout.WEIGHTS,), buffers=None, tensors=len(held), bytes=0, dtypes={}))
            self._seeds.append(structure_of(network, self._baked(len(self._seeds), b"")).encode())
        self._given: dict[int, tuple[Any, dict[str, Any]]] = {}
        self._active, self._broken = False, ""
        self._watch_names()
        sys.addaudithook(self._audit)

    def _baked(self, which: int, data: bytes) -> BakedModel:
        """A folder of which only the structure is read."""
        file = File(path=layout.STRUCTURE, size=len(data), sha256=hashlib.sha256(data).hexdigest())
        manifest = manifest_of(
            files=(file,), family="transformers", weights=self._weights[which], structure=layout.STRUCTURE
        )
        return BakedModel(self._folders[which], manifest)

    def seeds(self) -> list[bytes]:
        """Structures that must be read."""
        for which, data in enumerate(self._seeds):
            self._restore(which, data)
        return [bytes([which]) + data for which, data in enumerate(self._seeds)]

    def __call__(self, data: bytes) -> None:
        which, data = (data[0] if data else 0) % len(self._seeds), data[1:]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            self._restore(which, data)
        except (LoadError, IntegrityError):
            pass
        finally:
            self._active = False
            self._look_for_changes()
        if self._broken:
            raise FindingError(self._broken)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024
        if grown > _GROWTH:
            raise FindingError(f"{grown:,} bytes were allocated for an input of {len(data):,}")

    def _restore(self, which: int, data: bytes) -> None:
        (self._folders[which] / layout.STRUCTURE).write_bytes(data)
        self._given, self._broken, self._active = {}, "", True
        module = structure.restore(self._baked(which, data), self._tensors[which], self._family)
        self._active = False
        if not isinstance(module, nn.Module):
            raise FindingError(f"a {type(module).__name__} was given for a module")

    def _watch_names(self) -> None:
        """Remember what each class looks like when it is given out, before the structure can do anything to it."""
        plain = structure._Reader._class

        def watched(reader: Any, name: str) -> Any:
            found = plain(reader, name)
            self._given.setdefault(id(found), (found, _attributes(found)))
            return found

        structure._Reader._class = watched  # type: ignore[method-assign, assignment]
        imported = structure._imported

        def watched_import(module: str) -> Any:
            if not _harmless(module):
                self._broken = f"it imported {module}"
                raise FindingError(self._broken)
            return imported(module)

        structure._imported = watched_import

    def _look_for_changes(self) -> None:
        for found, before in self._given.values():
            after = _attributes(found)
            changed = sorted(key for key in before.keys() | after.keys() if before.get(key) is not after.get(key))
            changed = [key for key in changed if not key.startswith("_abc_") and key != "__doc__"]
            for key in changed:
                if key in before:
                    setattr(found, key, before[key])
                else:
                    delattr(found, key)
            if changed:
                raise FindingError(f"{found!r} was changed for the whole process: {', '.join(changed)}")

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._active:
            return
        if event in _REFUSED_EVENTS or (event == "open" and _writes(arguments)):
            self._broken = f"{event}{arguments!r:.200}"
        elif event == "compile" and "eval_with_key" in str(arguments[1]):
            self._broken = "torch.fx compiled source text"
        if self._broken:
            raise FindingError(self._broken)


def _harmless(module: str) -> bool:
    """Whether importing it only defines classes: no program, nothing private, no converter of checkpoints."""
    parts = module.split(".")
    return module.startswith(("torch.nn.modules.", "transformers.")) and not any(
        part.startswith(("_", "convert_", "modular_", "testing_", "cli", "commands")) for part in parts
    )


def _writes(arguments: tuple[Any, ...]) -> bool:
    """Whether the event `open` is for writing. Compiled modules that an import caches are nobody's harm."""
    path, mode = str(arguments[0]), arguments[1] or ""
    return any(letter in str(mode) for letter in "wax+") and "__pycache__" not in path


def change(data: bytes, random: Random) -> bytes | None:
    """The document changed, mostly for the same tensors, often by what the reader gives a meaning to."""
    changed = mutators.change_json(data[1:], random)
    if changed is None:
        return None
    if random.random() < 0.5:
        text = changed.decode(errors="surrogateescape")
        old = random.choice(["null", "[]", "{}", '["folder"]', "true", "0", '"training"'])
        new = json.dumps(random.choice(_ODD_VALUES))
        at = random.randrange(text.count(old) + 1)
        parts = text.split(old)
        changed = (old.join(parts[:at]) + (new if 0 < at < len(parts) else "") + old.join(parts[at:])).encode(
            errors="surrogateescape"
        )
    return (data[:1] if random.random() < 0.9 else bytes([random.randrange(3)])) + changed


def target() -> Target:
    """The target."""
    check = StructureCheck()
    return Target(check.seeds, check, change, 16_384)
