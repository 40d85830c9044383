"""easyocr: `Reader(…)`.

The library's own constructor runs without networks (`detector=False, recognizer=False`), with all other arguments of
the user. Then the reader gets the mapped networks as `getDetectorPath`, `get_detector` and `get_recognizer` would give
them: quantised on a CPU, as `DataParallel` on other devices. Read from 1.7.2.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Mapping
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

from prebake.adopt import redirect
from prebake.adopt.catalogue import catalogue
from prebake.adopt.loads import Load

if TYPE_CHECKING:
    from prebake.baked.model import BakedModel

FAMILY = "easyocr"
_STORAGE = ("model_storage_directory", "user_network_directory")


def install(module: ModuleType) -> None:
    """Replace the constructor of `Reader`."""
    cls = module.Reader
    original = cls.__init__
    if hasattr(original, "_prebake"):
        return
    signature = inspect.signature(original)

    @functools.wraps(original)
    def construct(self: Any, *args: Any, **kwargs: Any) -> None:
        given = _given(signature, self, args, kwargs)
        if given is None or not (given["detector"] or given["recognizer"]) or not redirect.applies():
            original(self, *args, **kwargs)
        else:
            _served(original, self, given, lambda: original(self, *args, **kwargs))

    construct._prebake = original  # type: ignore[attr-defined]
    cls.__init__ = construct


def _given(signature: inspect.Signature, self: Any, args: Any, kwargs: Any) -> dict[str, Any] | None:
    """All arguments with their values; None if the call does not fit the constructor."""
    try:
        bound = signature.bind(self, *args, **kwargs)
    except TypeError:
        return None
    bound.apply_defaults()
    return dict(bound.arguments)


def _served(original: Any, self: Any, given: dict[str, Any], by_library: Any) -> None:
    languages = [str(language) for language in given["lang_list"]]
    load = Load(
        library="easyocr",
        function="Reader",
        uri="easyocr:" + "+".join(languages),
        class_=f"{FAMILY}:Reader",
        dtype="float32",
        detail={"languages": languages} | ({} if given["quantize"] else {"quantize": False}),
        obstacle=_obstacle(given),
    )
    baked = None if redirect.observing() or load.obstacle else _baked(languages)
    if baked is not None and (unfit := _unfit(given)) is not None:
        baked, load = None, replace(load, reason=unfit)
    redirect.serve(
        load,
        baked=baked,
        mapped=lambda baked: _mapped(original, self, baked, given),
        original=by_library,
    )


def _obstacle(given: Mapping[str, Any]) -> str | None:
    """Why the networks that this call loads cannot be baked."""
    for key, usual in (("detect_network", "craft"), ("recog_network", "standard")):
        if given[key] != usual:
            return f"{key}={given[key]!r}"
    return None


def _unfit(given: Mapping[str, Any]) -> str | None:
    """Why the map cannot serve this call, or None."""
    known = {"self", "lang_list", "gpu", "detect_network", "recog_network", "download_enabled", "detector",
             "recognizer", "verbose", "quantize", "cudnn_benchmark", *_STORAGE}  # fmt: skip
    return next((key for key in given if key not in known), None)


def _baked(languages: list[str]) -> BakedModel | None:
    """The baked reader of these languages, in whatever order: the same set has the same networks."""
    for baked in catalogue().models:
        if baked.manifest.family == FAMILY and set(baked.manifest.options["languages"]) == set(languages):
            return baked
    return None


def _mapped(original: Any, self: Any, baked: BakedModel, given: Mapping[str, Any]) -> None:
    module: Any = redirect.module_of(baked)
    _without_networks(original, self, baked, given)
    if given["detector"]:
        from easyocr.detection import get_detector, get_textbox

        self.detect_network, self.get_textbox, self.get_detector = "craft", get_textbox, get_detector
        self.detector = _placed(module.detector, self.device)
        if self.device != "cpu":
            import torch

            torch.backends.cudnn.benchmark = given["cudnn_benchmark"]
    if given["recognizer"]:
        from easyocr.utils import CTCLabelConverter

        from prebake.families.easyocr import quantize, word_lists

        self.recognizer = _placed(module.recognizer, self.device)
        if given["quantize"] and self.device == "cpu":
            quantize(self.recognizer)
        self.converter = CTCLabelConverter(self.character, {}, word_lists(given["lang_list"]))


def _without_networks(original: Any, self: Any, baked: BakedModel, given: Mapping[str, Any]) -> None:
    """The library's constructor without networks. It makes its folders, which a read-only system has not, and puts one
    of them on `sys.path`: so it gets the baked folder, and the names that the reader should have afterwards."""
    from easyocr.config import MODULE_PATH

    usual = {"model_storage_directory": f"{MODULE_PATH}/model", "user_network_directory": f"{MODULE_PATH}/user_network"}
    arguments = {**given, "detector": False, "recognizer": False}
    arguments |= {key: given[key] or str(baked.folder) for key in _STORAGE}
    path = list(sys.path)
    original(**arguments)
    for key in _STORAGE:
        setattr(self, key, given[key] or usual[key])
    if not given["user_network_directory"]:
        sys.path[:] = path


def _placed(network: Any, device: Any) -> Any:
    """The network on the reader's device, in the form that the library gives it there."""
    if device == "cpu":
        return network.eval()
    import torch

    return torch.nn.DataParallel(network).to(device).eval()
