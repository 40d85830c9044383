"""EasyOCR's reader: its CRAFT detector and its recogniser as one module with two parts.

`easyocr.Reader` hashes its files, builds both networks with random values, unpickles the weights, and creates folders.
Here it is built without networks (`detector=False, recognizer=False`), which only fills its language tables, and then
gets the mapped networks. On a CPU, the reader quantises Linear and LSTM layers dynamically unless `quantize=False`. The
baked weights are the float weights; `equip` quantises them as the ordinary reader does.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from prebake.baked.model import BakedModel
from prebake.documents.messages import quote
from prebake.documents.table import Table
from prebake.families import compat

if TYPE_CHECKING:
    from torch import nn


GENERATIONS = {1: ("model", 512), 2: ("vgg_model", 256)}
"""Generation of a recogniser → the module in `easyocr.model` that defines it, and its width."""

_MOST_CLASSES = 100_000
"""Limit for a recogniser's output layer; EasyOCR's largest has 6,719 classes."""


class EasyOcrFamily:
    install: str = "'prebake[easyocr]'"
    build: str = "prebake_build.families.easyocr:EasyOcrBuild"
    packages: tuple[str, ...] = ("torch", "easyocr")
    modules: str = r"easyocr\.(craft|model\.[a-z]\w*)"
    without_torch: tuple[str, ...] = ("numpy", "cv2", "PIL.Image", "bidi", "yaml")

    def __init__(self, allow: Sequence[str] = ()) -> None:
        """Needs no code of the application."""

    def vocabulary(self) -> tuple[object, ...]:
        return ()

    def adopt(self, module: nn.Module) -> None:
        pass

    def prepare(self, baked: BakedModel) -> None:
        _check_options(baked)
        compat.torchvision_operators()
        import easyocr.craft
        import easyocr.detection
        import easyocr.recognition  # noqa: F401

    def skeleton(self, baked: BakedModel) -> nn.Module:
        from prebake.modules.skeleton import Skeleton

        with Skeleton():
            return networks(baked.manifest.options).eval()

    def ordinary(self, baked: BakedModel) -> nn.Module:
        from prebake.weights.tensors import read_tensors

        module = networks(baked.manifest.options)
        state = {name: tensor for file in baked.manifest.weights.files
                 for name, tensor in read_tensors(baked.folder / file).items()}  # fmt: skip
        module.load_state_dict(state)
        return module.eval()

    def equip(self, baked: BakedModel, module: nn.Module) -> Mapping[str, Any]:
        from easyocr.detection import get_detector, get_textbox
        from easyocr.utils import CTCLabelConverter

        options = baked.manifest.options
        detector, recognizer = cast(Any, module).detector, cast(Any, module).recognizer
        device = next(module.parameters()).device
        if options["quantize"] and device.type == "cpu":
            quantize(recognizer)
        reader = bare_reader(options["languages"], str(baked.folder))
        reader.detect_network, reader.get_detector, reader.get_textbox = "craft", get_detector, get_textbox
        reader.quantize, reader.device = options["quantize"], str(device)
        reader.detector, reader.recognizer = detector, recognizer
        reader.converter = CTCLabelConverter(reader.character, {}, word_lists(options["languages"]))
        return {"reader": reader}


def _check_options(baked: BakedModel) -> None:
    """Check the options. Raises DocumentError."""
    options = Table(baked.manifest.options, f"{baked.folder}: options")
    for language in options.strings("languages"):
        if not re.fullmatch(r"[a-z_]+", language):  # EasyOCR builds a path from it
            raise options.fail("languages", f"{quote(language)} is not a language code")
    options.take("quantize", bool)
    recognizer = options.table("recognizer")
    if (generation := recognizer.take("generation", int)) not in GENERATIONS:
        raise recognizer.fail("generation", f"{generation} is not one of {', '.join(map(str, GENERATIONS))}")
    if not 0 < (classes := recognizer.take("classes", int)) <= _MOST_CLASSES:
        raise recognizer.fail("classes", f"{classes} is not between 1 and {_MOST_CLASSES:,}")
    recognizer.finish()
    options.finish()


def networks(options: Mapping[str, Any]) -> nn.Module:
    """Detector and recogniser as one module, with the values that their constructors set.

    `options["recognizer"]` holds `generation` (1 or 2) and `classes`, the size of the output layer.
    """
    import importlib

    from easyocr.craft import CRAFT
    from torch import nn

    recognizer = options["recognizer"]
    module, width = GENERATIONS[recognizer["generation"]]
    model = importlib.import_module(f"easyocr.model.{module}").Model(
        input_channel=1, output_channel=width, hidden_size=width, num_class=recognizer["classes"]
    )
    return nn.ModuleDict({"detector": CRAFT(), "recognizer": model})


def bare_reader(languages: Iterable[str], folder: str) -> Any:
    """An `easyocr.Reader` with its language tables and without networks. Writes nothing.

    The constructor creates missing storage folders, so it gets an existing one. It also appends a folder to `sys.path`;
    this function undoes that, because no code should be imported from a folder of weights.
    """
    from easyocr import Reader

    before = list(sys.path)
    try:
        return Reader(
            list(languages), gpu=False, detector=False, recognizer=False, verbose=False, download_enabled=False,
            model_storage_directory=folder, user_network_directory=folder,
        )  # fmt: skip
    finally:
        sys.path[:] = before


def word_lists(languages: Iterable[str]) -> dict[str, str]:
    """Language → path of EasyOCR's word list, which its label converter reads."""
    import easyocr

    folder = Path(easyocr.__file__).parent / "dict"
    return {language: str(folder / f"{language}.txt") for language in languages}


def quantize(recognizer: nn.Module) -> None:
    """Replace Linear and LSTM layers with dynamically quantised ones, in place, as EasyOCR does on a CPU.

    Their constructors draw random weights, which takes a quarter of the time, and then overwrite them. Here they get
    zeros instead.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    class Drawn(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return (torch.zeros if func is torch.randn else func)(*args, **(kwargs or {}))

    with warnings.catch_warnings(), Drawn():
        warnings.simplefilter("ignore")  # EasyOCR calls the same deprecated functions
        cast(Any, torch.ao.quantization).quantize_dynamic(recognizer, dtype=torch.qint8, inplace=True)
