"""Small repairs of the libraries a service stands on, each with its reason. Importing this imports none of them."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import threading

_LOCK = threading.Lock()
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_OPERATORS = ("nms", "qnms")
_EXTENSIONS = ("_C_stable", "_C")
"""torchvision's compiled part: in 0.29, and until 0.28. One that declares an operator twice ends the process."""


def torchvision_operators() -> None:
    """Make `import torchvision` work beside a PyTorch that torchvision's compiled part was not built for.

    PyPI's torchvision is built for CUDA. Beside a CPU build of torch its `_C` library cannot be loaded, and
    `import torchvision` ends in `operator torchvision::nms does not exist`, because its Python part registers
    fake kernels for operators that only `_C` declares. Declaring the two schemas is enough for transformers
    and EasyOCR, which call neither; whoever does call them gets PyTorch's own "no kernel" error.

    Call it before the first import of torchvision, from any thread, as often as you like. Where `_C` loads,
    where the operators are there already, and where torchvision is not installed, it changes nothing: a
    library that declares its operators itself must find them undeclared.
    """
    with _LOCK:
        if "torchvision" in sys.modules:
            return
        extension = _extension()
        if extension is None:
            return
        import torch

        if all(hasattr(torch.ops.torchvision, name) for name in _OPERATORS):
            return
        if extension and _loads(extension):
            return
        for name in _OPERATORS:
            if not hasattr(torch.ops.torchvision, name):
                torch.library.define(f"torchvision::{name}", _SCHEMA)


def _extension() -> str | None:
    """The path of torchvision's compiled part, empty where it ships none, None where torchvision is not installed."""
    package = importlib.util.find_spec("torchvision")
    if package is None or not package.submodule_search_locations:
        return None
    loader = (importlib.machinery.ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES)
    for folder in package.submodule_search_locations:
        finder = importlib.machinery.FileFinder(folder, loader)
        for name in _EXTENSIONS:
            found = finder.find_spec(name)
            if found is not None and found.origin:
                return found.origin
    return ""


def _loads(path: str) -> bool:
    """Whether `_C` can be loaded; torchvision would do the same a moment later, and loading twice is free."""
    import torch

    try:
        torch.ops.load_library(path)  # type: ignore[no-untyped-call]
    except (ImportError, OSError):
        return False
    return True
