"""The model that tests of `hf:` find on a local hub, and what was locked of it."""

from __future__ import annotations

import hashlib

from helpers.hub_server import COMMIT, REPO
from prebake.baked.manifest import File
from prebake_build.sources import Resolved
from prebake_build.sources.hugging_face import HuggingFaceSource

TOKEN = "hf_verySecretTokenOfTheTest"
FILES = {
    "config.json": b'{"model_type": "blip"}',
    "pytorch_model.bin": b"pickle" * 1000,
    "tokenizer.json": b"{}",
    "vocab.txt": b"[PAD]\n",
    "README.md": b"card",
    "tf_model.h5": b"tensorflow",
}


def source(rest: str = REPO) -> HuggingFaceSource:
    return HuggingFaceSource.parse(f"hf:{rest}", rest, "models.toml: models.tiny.source")


def locked(**files: bytes) -> Resolved:
    names = files or {name: FILES[name] for name in ("config.json", "pytorch_model.bin")}
    return Resolved(
        revision=f"commit:{COMMIT}",
        files=tuple(
            File(path=path, size=len(body), sha256=hashlib.sha256(body).hexdigest())
            for path, body in sorted(names.items())
        ),
    )
