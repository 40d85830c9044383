"""EasyOCR's dummies are read by EasyOCR's own reader, which finds the lines of a picture with them."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.dummy_checkpoints import make, picture
from prebake_build.dummies import detector, easyocr
from prebake_build.files import digest


@pytest.fixture(scope="module")
def ocr_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("dummies") / "ocr", "easyocr", languages=("ko", "en"))


class TestEasyOcr:
    def test_the_files_are_named_by_easyocrs_tables(self, ocr_folder: Path) -> None:
        assert [path.name for path in sorted(ocr_folder.iterdir())] == ["craft_mlt_25k.zip", "korean_g2.zip"]
        for path in ocr_folder.iterdir():
            with zipfile.ZipFile(path) as archive:
                assert archive.namelist() == [f"{path.stem}.pth"]

    @pytest.mark.parametrize(("languages", "recogniser"), [(("en",), "english_g2.zip"), (("th", "en"), "thai.zip")])
    def test_other_languages_bring_their_own_recogniser(self, languages: tuple[str, ...], recogniser: str) -> None:
        found = easyocr.builders(languages)
        assert found.keys() == {"craft_mlt_25k.zip", recogniser}
        tensors, _ = easyocr.tensors(found[recogniser][1], found[recogniser][0], 0)
        assert all(tensor.name.startswith("module.") for tensor in tensors)

    def test_the_same_seed_gives_the_same_bytes(self, tmp_path: Path, ocr_folder: Path) -> None:
        again = make(tmp_path / "again", "easyocr", size="tiny", languages=("ko", "en"))
        assert digest.files_of(again) == digest.files_of(ocr_folder)

    def test_the_path_through_the_detector_is_undisturbed(self, ocr_folder: Path) -> None:
        names = {tensor.name.removeprefix("module.") for tensor in easyocr.tensors(_craft(), "craft", 0)[0]}
        edited = {name for name in names if detector.edit_for(name)}
        # 15 convolutions with 2 tensors each, 10 of them normalised with 4 tensors that matter.
        assert len(edited) == 15 * 2 + 10 * 4

    def test_a_reader_finds_the_lines_and_nothing_else(self, tmp_path: Path, ocr_folder: Path) -> None:
        import easyocr as upstream

        before = [dict(entry) for entry in _entries()]
        easyocr.accept_in_reader(easyocr.unpack_for_reader(ocr_folder, tmp_path))
        with warnings.catch_warnings():
            # Of quantize_dynamic, and of a DataLoader that pins memory where there is no accelerator.
            warnings.simplefilter("ignore")
            try:
                reader = upstream.Reader(
                    ["ko", "en"], gpu=False, model_storage_directory=str(tmp_path),
                    user_network_directory=str(tmp_path), download_enabled=False, verbose=False,
                )  # fmt: skip
            finally:
                for entry, values in zip(_entries(), before, strict=True):
                    entry.update(values)
            found = reader.readtext(np.array(picture("Hello world", "42 cats")))
            assert reader.readtext(np.array(picture("Hello world", "42 cats"))) == found
            assert reader.readtext(np.array(picture())) == []
            assert reader.readtext(np.array(picture(background="black"))) == []
        assert len(found) == 2
        for (box, text, confidence), top in zip(found, (20, 90), strict=True):
            assert text
            assert confidence > 0.003
            (left, upper), _, (right, lower), _ = box
            assert left < 40
            assert right > 100
            assert abs(upper - top) < 20
            assert abs(lower - top - 40) < 20


def _craft() -> Any:
    return easyocr.builders(("ko", "en"))["craft_mlt_25k.zip"][1]


def _entries() -> list[dict[str, Any]]:
    from easyocr.config import detection_models, recognition_models

    return [entry for models in (detection_models, *recognition_models.values()) for entry in models.values()]
