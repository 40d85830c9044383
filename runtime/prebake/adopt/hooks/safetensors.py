"""safetensors: `safetensors.torch.load_file` of a declared file.

`safe_open` stays as it is: it maps the file itself, and reads single tensors out of files that libraries share out
among processes and devices.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

from prebake.adopt import redirect
from prebake.adopt.hooks.torch import FAMILY, OWN, load_of, path_of, served
from prebake.adopt.loads import Load


def install(module: ModuleType) -> None:
    """Replace `load_file` of `safetensors.torch`."""
    original = module.load_file
    if hasattr(original, "_prebake"):
        return

    @functools.wraps(original)
    def load_file(filename: Any, device: Any = "cpu", *args: Any, **kwargs: Any) -> Any:
        path = path_of(filename)
        if path is None or args or kwargs or not redirect.applies() or redirect.caller() in OWN:
            return original(filename, device, *args, **kwargs)
        return served(
            load_of(path, Load(library="safetensors", function="load_file", class_=FAMILY)),
            original=lambda: original(filename, device),
            map_location=f"cuda:{device}" if isinstance(device, int) else device,
        )

    load_file._prebake = original  # type: ignore[attr-defined]
    module.load_file = load_file  # type: ignore[attr-defined]
