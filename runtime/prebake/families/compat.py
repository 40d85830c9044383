"""Workarounds for libraries that services use, each with its reason. Importing this module imports none of them."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import threading

_LOCK = threading.Lock()
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_OPERATORS = ("nms", "qnms")
_EXTENSIONS = ("_C_stable", "_C")
"""torchvision's extension module: in 0.29, and up to 0.28. Declaring an operator twice aborts the process."""


def torchvision_operators(*, being_imported: bool = False) -> None:
    """Make `import torchvision` work with a PyTorch that torchvision's extension module was not built for.

    PyPI's torchvision is built for CUDA. With a CPU build of torch, its `_C` library can't be loaded, and
    `import torchvision` fails with `operator torchvision::nms does not exist`, because its Python code registers fake
    kernels for operators that only `_C` declares. Declaring the two schemas is enough for transformers and EasyOCR,
    which call neither operator; code that calls them gets PyTorch's own "no kernel" error.

    Call it before the first import of torchvision, from any thread, as often as needed. It does nothing if `_C` loads,
    the operators exist already, or torchvision is not installed: `_C` must find its operators undeclared.
    `being_imported` says that the import has begun, and none of torchvision's code has run.
    """
    with _LOCK:
        if "torchvision" in sys.modules and not being_imported:
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
    """Path of torchvision's extension module; empty if it ships none, None if torchvision is not installed."""
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
    """Whether `_C` can be loaded. torchvision loads it anyway; loading it twice costs nothing."""
    import torch

    try:
        torch.ops.load_library(path)  # type: ignore[no-untyped-call]
    except (ImportError, OSError):
        return False
    return True
