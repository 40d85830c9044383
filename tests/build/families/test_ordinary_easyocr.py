"""EasyOCR's zips are unpacked and read without running or writing anything, or refused with the reason."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch

from helpers.baking import Evil, recipe, refused
from prebake.errors import SourceError


def zips(folder: Path, **members: Any) -> Path:
    """The two zips of ko+en; values are state dicts, or bytes of what stands in a zip's place."""
    folder.mkdir(exist_ok=True)
    for name in ("craft_mlt_25k", "korean_g2"):
        content = members.get(name, {"module.weight": torch.ones(1)})
        if isinstance(content, bytes):
            (folder / f"{name}.zip").write_bytes(content)
            continue
        torch.save(content, folder / f"{name}.pth")
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
            archive.write(folder / f"{name}.pth", members.get("member", f"{name}.pth"))
        (folder / f"{name}.pth").unlink()
    return folder


OCR = recipe("easyocr", class_="Reader", options={"languages": ["ko", "en"], "quantize": True})


def test_a_pickle_in_a_zip_that_wants_to_run_code_is_refused_and_runs_none(tmp_path: Path) -> None:
    checkpoint = zips(tmp_path / "c", korean_g2={"module.x": Evil(tmp_path / "proof")})
    assert refused(SourceError, OCR, checkpoint).startswith(
        "models.m: korean_g2.pth: refused: its pickle wants to construct posix.system, "
    )
    assert not (tmp_path / "proof").exists()


def test_a_zip_that_leaves_its_folder_is_refused(tmp_path: Path) -> None:
    checkpoint = zips(tmp_path / "c", member="../../craft_mlt_25k.pth")
    assert refused(SourceError, OCR, checkpoint) == (
        "craft_mlt_25k.zip: refused, nothing was unpacked:\n"
        '  "../../craft_mlt_25k.pth": leaves the folder'
    )  # fmt: skip


def test_a_zip_that_is_none_is_refused(tmp_path: Path) -> None:
    assert refused(SourceError, OCR, zips(tmp_path / "c", craft_mlt_25k=b"<html>")) == (
        "craft_mlt_25k.zip: is damaged, or not an archive of this type: File is not a zip file"
    )


def test_weights_that_are_no_recogniser_are_refused(tmp_path: Path) -> None:
    assert refused(SourceError, OCR, zips(tmp_path / "c")) == (
        "models.m: lacks Prediction.bias: this is not a recogniser of EasyOCR"
    )
    checkpoint = zips(tmp_path / "c", korean_g2={"module.Prediction.bias": torch.ones(10)})
    assert refused(SourceError, OCR, checkpoint).startswith(
        "models.m: detector: the checkpoint does not fit the class: "
    )
