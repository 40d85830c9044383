"""Small checkpoints, and how tests bake them: the command line in this process, or a worker's job."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from prebake import load
from prebake.__main__ import main
from prebake.errors import PrebakeError
from prebake.families.compat import torchvision_operators
from prebake.telemetry import timeline
from prebake_build.baking.ordinary import load_checkpoint
from prebake_build.baking.worker import Job
from prebake_build.families.family import Recipe

torchvision_operators()

TESTS = Path(__file__).parents[1]

LINEAR = '[models.m]\nsource = "path:c"\nclass = "torch:helpers.networks:linear"\n'
BERT = '[models.m]\nsource = "path:c"\n'


def job(checkpoint: Path, folder: Path, **changes: Any) -> Job:
    """What `prebake bake` asks the worker for; `folder` is made."""
    folder.mkdir(parents=True)
    values: dict[str, Any] = {
        "name": folder.name, "family": "transformers", "class_": None, "dtype": "source", "options": {},
        "loading": {"retries": 0, "timeout": None, "required": True},
        "source": {"uri": "path:checkpoint", "revision": "sha256:" + "0" * 64, "licence": None},
        "recipe": "sha256:" + "1" * 64, "checkpoint": str(checkpoint), "folder": str(folder),
    }  # fmt: skip
    return Job(**(values | changes))


def torch_job(checkpoint: Path, folder: Path, factory: str, **changes: Any) -> Job:
    arguments = changes.pop("arguments", {})
    return job(checkpoint, folder, family="torch", class_=factory, options={"arguments": arguments}, **changes)


def recipe(family: str = "transformers", **changes: Any) -> Recipe:
    """What the ordinary load of a checkpoint is asked for."""
    values = {"class_": None, "dtype": "source", "options": {}} | changes
    return Recipe(name="m", family=family, **values)


def refused(kind: type[PrebakeError], recipe: Recipe, checkpoint: Path) -> str:
    """The message with which the checkpoint is refused."""
    with pytest.raises(kind) as caught:
        load_checkpoint(recipe, checkpoint)
    assert type(caught.value) is kind
    return str(caught.value)


def declare(folder: Path, text: str) -> Path:
    """A `models.toml` in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "models.toml"
    path.write_text(text)
    return path


def into(capsys: pytest.CaptureFixture[str], models: Path, output: str, *arguments: object) -> tuple[int, str]:
    """Bake into a folder of this name beside `models.toml`; exit code and stderr."""
    code, _, err = prebake(capsys, "bake", "--models", models, "--output", models.parent / output, *arguments)
    return code, err


def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `prebake bake` do the worker's part in this process, which saves the imports of a new one."""
    from prebake_build.baking.worker import run

    monkeypatch.setattr(
        "prebake_build.baking.bake._work",
        lambda job, *rest: run(Job(**json.loads(json.dumps(dataclasses.asdict(job))))),
    )


def prebake(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Run the command line in this process: exit code, stdout, stderr."""
    capsys.readouterr()
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def bake(capsys: pytest.CaptureFixture[str], models: Path, *arguments: object) -> tuple[int, str, str]:
    """`prebake bake` into the folder `out` beside `models.toml`, as `prebake` runs it."""
    return prebake(capsys, "bake", "--models", models, "--output", models.parent / "out", *arguments)


def nothing_is_left(models: Path) -> bool:
    output = models.parent / "out"
    return not output.exists() or names(output) == []


def load_by(folder: Path) -> tuple[Any, str]:
    """The mapped module, and the spans that say how it was made."""
    before = len(timeline.process.spans)
    loaded = load(folder, ("mapped",))
    spans = {span.name for span in timeline.process.spans[before:]}
    return loaded.model, "constructor" if "skeleton" in spans else "structure"


def without_privileges(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process that no permission is waived for, though its user may be root."""
    command = [sys.executable, "-m", "prebake", *map(str, arguments)]
    if os.geteuid() == 0:
        if not shutil.which("setpriv"):
            pytest.skip("root without setpriv cannot lay its privileges down")
        command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", *command]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def names(folder: Path) -> list[str]:
    """What stands in the folder, sorted."""
    return sorted(path.name for path in folder.iterdir())


def tree(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Everything below the folder, itself included: path → mode, mtime, sha256 (empty for folders)."""
    found = {}
    for path in (folder, *sorted(folder.rglob("*"))):
        status = path.stat()
        digest = "" if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest()
        found[path.relative_to(folder).as_posix()] = (stat.S_IMODE(status.st_mode), status.st_mtime_ns, digest)
    return found


def flip_byte(path: Path, offset: int = -1) -> None:
    """Change one byte in place, and nothing else."""
    with path.open("r+b") as file:
        file.seek(offset, os.SEEK_END if offset < 0 else os.SEEK_SET)
        old = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([old ^ 1]))


# --- checkpoints -------------------------------------------------------------------------------------------------


def tiny(class_: str, **changes: Any) -> Any:
    """A model of transformers with random weights, a few tens of thousands."""
    import transformers

    sizes: Mapping[str, Mapping[str, Any]] = {
        "BertForMaskedLM": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
                            "intermediate_size": 24, "vocab_size": 50, "max_position_embeddings": 12},
        "GPT2LMHeadModel": {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 50, "n_positions": 12},
        "T5ForConditionalGeneration": {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2,
                                       "vocab_size": 50, "decoder_start_token_id": 0},
    }  # fmt: skip
    cls = getattr(transformers, class_)
    torch.manual_seed(7)
    return cls(cls.config_class(**{**sizes[class_], **changes})).eval()


def save(model: Any, folder: Path, form: str) -> Path:
    """The model as a checkpoint: `safetensors`, `pickle`, or either in shards."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    if form.startswith("safetensors"):
        model.save_pretrained(folder, max_shard_size="10KB" if form.endswith("shards") else "5GB")
        assert len(list(folder.glob("*.safetensors"))) > 1 or not form.endswith("shards")
    elif form == "pickle":
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    else:
        _save_pickled_shards(model.state_dict(), folder)
    return folder


def _save_pickled_shards(state: Mapping[str, torch.Tensor], folder: Path) -> None:
    names = list(state)
    index: dict[str, str] = {}
    for number in range(2):
        shard = f"pytorch_model-0000{number + 1}-of-00002.bin"
        part = {name: state[name] for name in names[number::2]}
        torch.save(part, folder / shard)
        index |= dict.fromkeys(part, shard)
    document = {"metadata": {"total_size": 0}, "weight_map": index}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(document))


FORMS = ("safetensors", "pickle", "safetensors shards", "pickle shards")


class Evil:
    """Unpickled without protection, it makes a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> Any:
        return (os.system, (f"touch {self.proof}",))
