"""Prepares one process, before any other import: says what happens once a framework or a library is imported.

Every Python process below `prebake run` calls `prepare`. It costs the imports of this module and of `imports`; all
else is imported with the first framework (`frameworks`), in processes that import one.
"""

from __future__ import annotations

import os

from prebake.adopt import ENV_CHECK, ENV_DUMP
from prebake.adopt.imports import around_import, when_imported

TYPE_CHECKING = False  # importing `typing` for its constant would cost time
if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from types import ModuleType

FRAMEWORKS = (
    "torch",
    "torchvision",
    "transformers",
    "diffusers",
    "easyocr",
    "sentence_transformers",
    "timm",
)
"""The first import of one of these prepares the process for all."""

HOOKS = {
    "huggingface_hub.file_download": "huggingface_hub",
    "huggingface_hub._snapshot_download": "huggingface_hub",
    "huggingface_hub.hf_api": "huggingface_hub",
    "torch": "torch",
    "safetensors.torch": "safetensors",
    "easyocr.easyocr": "easyocr",
    "timm.models._factory": "timm",
    "transformers.modeling_utils": "transformers",
    "sentence_transformers": "sentence_transformers",
    "diffusers.pipelines.pipeline_utils": "diffusers",
    "diffusers.models.modeling_utils": "diffusers",
    "uvicorn.server": "uvicorn",
    "numba": "numba",
}
"""Module → the hook, in `prebake.adopt.hooks`, that is installed once the module is imported."""


def prepare() -> None:
    """Register everything; imports nothing more. Safe to call again."""
    if _prepared:
        return
    _prepared.append(True)
    if os.environ.get(ENV_CHECK):
        from prebake.adopt import checked

        checked.begin()
    if ENV_DUMP in os.environ:
        from prebake.adopt import dumping

        dumping.begin()
    for name in FRAMEWORKS:
        around_import(name, _framework)
    for module, hook in HOOKS.items():
        when_imported(module, _installer(hook))


_prepared: list[bool] = []


def _framework(name: str) -> AbstractContextManager[object]:
    from prebake.adopt import frameworks

    return frameworks.importing(name)


def _installer(hook: str) -> Callable[[ModuleType], object]:
    def install(module: ModuleType) -> None:
        from importlib import import_module

        import_module(f"prebake.adopt.hooks.{hook}").install(module)

    return install
