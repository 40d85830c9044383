"""A dummy of EasyOCR's models: the zips of the detector and one recogniser, named as in EasyOCR's own tables.

Each contains one pickle whose keys begin with `module.`, saved from a GPU (`cuda:0`) as upstream's are; the detector
uses the format of torch before 1.6. The detector finds text (see `detector.py`); the recogniser reads random
characters, the same for the same picture. EasyOCR's classes determine the shapes, so there is no tiny version:
`size=tiny` gives the full 99 MB, which takes two seconds to generate.
"""

from __future__ import annotations

import math
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prebake.families.compat import torchvision_operators
from prebake_build.dummies import archives, detector, progress_bar
from prebake_build.dummies.weights import BIAS, NORM_WEIGHT, Fill, Tensor, constant, random, state_dict_of
from prebake_build.files import digest
from prebake_build.upstream.easyocr import Archive, archive_members, recognizer_of

PREFIX = "module."
"""The key prefix of `torch.nn.DataParallel`, which upstream used for training."""

_BATCHES = 100_000
"""`num_batches_tracked`, which nothing reads."""


def tensors(build: Callable[[], Any], name: str, seed: int) -> tuple[list[Tensor], Mapping[str, Any]]:
    """The state dict of a module of EasyOCR as if saved from `DataParallel`, and the versions beside it.

    `name` separates the random streams of two modules with the same keys.
    """
    state, metadata = state_dict_of(build)
    is_detector = name == "craft"
    found = []
    for key, (shape, dtype) in state.items():
        if dtype == "int64":
            found.append(constant(PREFIX + key, np.array(_BATCHES, dtype=np.int64)))
            continue
        found.append(random(seed, PREFIX + key, shape, _fill_for(key, shape), stream=f"{name}/{key}",
                            edit=detector.edit_for(key) if is_detector else None))  # fmt: skip
    versions = {PREFIX.rstrip("."): {"version": 1}, "": {"version": 1}}
    return found, {**versions, **{PREFIX + key: value for key, value in metadata.items() if key}}


def _fill_for(key: str, shape: tuple[int, ...]) -> Fill:
    if key.endswith("running_var"):
        return NORM_WEIGHT
    if key.endswith("running_mean") or "bias" in key:
        return BIAS
    if len(shape) == 1:
        return NORM_WEIGHT
    if "SequenceModeling" in key or "Prediction" in key:
        # Wide enough that the characters vary along a line and have high confidence: with the usual width, one
        # character repeats, and EasyOCR reads every box of low confidence twice.
        return Fill(0.0, (64.0 if "Prediction" in key else 4.0) / math.sqrt(shape[1]))
    # He initialisation: the values keep their magnitude through the convolutions.
    return Fill(0.0, math.sqrt(6.0 / math.prod(shape[1:])))


def builders(languages: Sequence[str]) -> dict[str, tuple[str, Callable[[], Any]]]:
    """Zip → name of its random streams, and the function that builds its module. Raises ConfigError for unknown
    languages."""
    torchvision_operators()
    key = recognizer_of(languages)
    from easyocr.config import detection_models, recognition_models
    from easyocr.craft import CRAFT
    from easyocr.model import model, vgg_model

    generation = next(name for name, models in recognition_models.items() if key in models)
    entry = recognition_models[generation][key]
    # One class more than there are characters: the CTC decoder's blank.
    classes = len(entry["characters"]) + 1
    module, width = (model, 512) if generation == "gen1" else (vgg_model, 256)

    def recogniser() -> Any:
        return module.Model(input_channel=1, output_channel=width, hidden_size=width, num_class=classes)

    zips = {archive.member: name for name, archive in archive_members(languages).items()}
    return {
        zips[detection_models["craft"]["filename"]]: ("craft", CRAFT),
        zips[entry["filename"]]: (key, recogniser),
    }


def write(folder: Path, languages: Sequence[str], seed: int) -> None:
    """Write the two zips into `folder`. Raises ConfigError if EasyOCR can't combine these languages."""
    members: dict[str, Archive] = archive_members(languages)
    for name, (stream, build) in builders(languages).items():
        found, metadata = tensors(build, stream, seed)
        writer = archives.write_torch_legacy if stream == "craft" else archives.write_torch_zip
        with (
            tempfile.TemporaryDirectory(prefix="prebake-") as scratch,
            progress_bar(name, sum(tensor.nbytes for tensor in found)) as progress,
        ):
            member = Path(scratch) / members[name].member
            writer(member, found, metadata, progress, "cuda:0")
            archives.write_zip(folder / name, member)


def unpack_for_reader(checkpoint: Path, storage: Path) -> dict[str, str]:
    """Unzip a checkpoint into a `model_storage_directory`. Returns the md5 of each `.pth` by its name."""
    sums = {}
    for path in sorted(checkpoint.glob("*.zip")):
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                sums[member] = digest.md5_of(Path(archive.extract(member, storage)))
    return sums


def accept_in_reader(sums: Mapping[str, str]) -> None:
    """Put these md5 sums into EasyOCR's tables, with which `easyocr.Reader` compares its files at every start."""
    torchvision_operators()
    from easyocr.easyocr import detection_models, recognition_models

    for models in (detection_models, *recognition_models.values()):
        for entry in models.values():
            entry["md5sum"] = sums.get(entry["filename"], entry["md5sum"])
