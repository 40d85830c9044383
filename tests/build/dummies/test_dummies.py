"""Dummies are upstream's files with other values: they load, they answer, and they are the same everywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.dummy_checkpoints import make, picture
from prebake.baked.manifest import set_digest
from prebake_build.dummies import archives, blip, florence2, tokenizers
from prebake_build.files import digest

UPSTREAM_BLIP = {
    "config.json": "f7846f82f4e2c4a2ccbab9ae8b0e44873540a271a76a1288effd078180c13a82",
    "preprocessor_config.json": "065c10ec97edc5081fbd9655b3d9d25e2647ea6d5dab873325e88eed12d80a7d",
    "pytorch_model.bin": None,
    "special_tokens_map.json": "b6d346be366a7d1d48332dbc9fdf3bf8960b5d879522b7799ddba59e76237ee3",
    "tokenizer.json": None,
    "tokenizer_config.json": None,
    "vocab.txt": None,
}
UPSTREAM_FLORENCE = {
    "added_tokens.json": "1d75deda84dfa81fb6c09301f3fed00f9695059568bbb1403a6bf299cd84fc37",
    "config.json": None,
    "generation_config.json": "0251459c49cc358ac033b5d4b8569e61ac22bde5d76be404b97a44cfb33fb12e",
    "merges.txt": None,
    "model.safetensors": None,
    "preprocessor_config.json": None,
    "processor_config.json": None,
    "special_tokens_map.json": "72ff172dc769bc1551b1b4211628ce3271643bc60379e4da45d85a9be9332c39",
    "tokenizer.json": None,
    "tokenizer_config.json": "cb5f80bd9afa767bb1bb798ee5f0a79eae45239b8e72506166b4218175a16723",
    "vocab.json": None,
}
"""None where upstream's file holds its vocabulary or weights, or is spelled in a way not known here."""


SETS = {
    "blip-base": "sha256:7e5afd7f682ace32b5899d6cba8f85358f23ba64c282e6cabdd77a4186cd0042",
    "florence-2-base": "sha256:d3ea77a22afc33423a718903d899eae636300a375626007dd3dc5b3b76c44d47",
}
"""The tiny dummies of seed 0: the same with transformers 4.57.6 and 5.23. Where one changes, raise GENERATOR."""


@pytest.fixture(scope="module")
def blip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("dummies") / "blip", "blip-base", size="tiny")


@pytest.fixture(scope="module")
def florence_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("dummies") / "florence", "florence-2-base", size="tiny")


@pytest.fixture(scope="module")
def captioner(blip_folder: Path) -> tuple[Any, Any]:
    from transformers import BlipForConditionalGeneration, BlipProcessor

    model, report = BlipForConditionalGeneration.from_pretrained(blip_folder, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval(), BlipProcessor.from_pretrained(blip_folder)


@pytest.fixture(scope="module")
def florence(florence_folder: Path) -> tuple[Any, Any]:
    from transformers import Florence2ForConditionalGeneration, Florence2Processor

    model, report = Florence2ForConditionalGeneration.from_pretrained(
        florence_folder, output_loading_info=True, dtype=torch.float32
    )
    assert not any(report.values()), report
    return model.eval(), Florence2Processor.from_pretrained(florence_folder)


class TestTokenizers:
    @given(st.lists(st.text(alphabet="abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=12), max_size=8))
    @settings(max_examples=60)
    def test_blip_gives_lower_case_words_back(self, captioner: tuple[Any, Any], words: list[str]) -> None:
        tokenizer = captioner[1].tokenizer
        text = " ".join(words)
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text

    @given(st.text(max_size=40))
    @settings(max_examples=100)
    def test_florence_gives_any_text_back(self, florence: tuple[Any, Any], text: str) -> None:
        tokenizer = florence[1].tokenizer
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text

    def test_the_vocabularies_have_upstreams_layout(self) -> None:
        words, first_word = tokenizers.wordpiece(30_522)
        assert len(words) == len(set(words)) == 30_522
        assert [words.index(token) for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")] == [
            0,
            100,
            101,
            102,
            103,
        ]
        assert words[first_word].isalpha()
        pieces, merges = tokenizers.byte_level_bpe(50_265)
        assert len(pieces) == len(set(pieces)) == 50_265
        assert len(merges) == 50_000
        assert [pieces[token] for token in ("<s>", "<pad>", "</s>", "<unk>", "<mask>")] == [0, 1, 2, 3, 50_264]
        assert all(left in pieces and right in pieces for left, right in merges)


class TestBlip:
    def test_the_files_are_upstreams(self, blip_folder: Path) -> None:
        assert {path.name for path in blip_folder.iterdir()} == UPSTREAM_BLIP.keys()

    def test_full_size_documents_are_upstreams_bytes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(blip, "tensors", lambda size, seed: ([], {}))
        blip.write(tmp_path, "full", 0)
        assert_upstream(tmp_path, UPSTREAM_BLIP)

    def test_full_size_has_the_shapes_of_the_class_and_the_size_of_upstreams_pickle(self) -> None:
        tensors, _ = blip.tensors("full", 0)
        named = {tensor.name: tensor for tensor in tensors}
        extra = (blip.POSITION_IDS, f"{blip.OUTPUT}.decoder.weight", f"{blip.OUTPUT}.decoder.bias")
        assert sum(tensor.numel for tensor in tensors) - sum(named[name].numel for name in extra) == 223_971_644
        # Upstream's 989,820,849 bytes without the frame of some 340 bytes around each of 474 tensors.
        stored = sum(tensor.nbytes for tensor in tensors if not tensor.same_storage_as)
        assert stored == 989_660_400
        assert 0 < 989_820_849 - stored < 350 * len(tensors)

    def test_the_output_embedding_is_stored_twice(self, blip_folder: Path) -> None:
        state = torch.load(blip_folder / "pytorch_model.bin", weights_only=True)
        words, output = state[blip.WORDS], state[f"{blip.OUTPUT}.decoder.weight"]
        assert torch.equal(words, output)
        assert words.data_ptr() != output.data_ptr()
        assert state[f"{blip.OUTPUT}.bias"].data_ptr() == state[f"{blip.OUTPUT}.decoder.bias"].data_ptr()
        assert torch.equal(state[blip.POSITION_IDS], torch.arange(512)[None])

    def test_it_captions_to_the_last_token_in_words(self, captioner: tuple[Any, Any]) -> None:
        model, processor = captioner
        inputs = processor(picture("Hello"), return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=20)
        assert ids.shape == (1, 21)
        assert torch.equal(ids, model.generate(**inputs, max_new_tokens=20))
        caption = processor.decode(ids[0], skip_special_tokens=True).split()
        assert len(caption) == 20
        assert len(set(caption)) > 5
        logits = model(pixel_values=inputs["pixel_values"], input_ids=ids).logits
        assert torch.isfinite(logits).all()

    def test_the_caption_depends_on_the_picture(self, captioner: tuple[Any, Any]) -> None:
        model, processor = captioner
        pictures = [picture(background=colour) for colour in ("white", "red", "blue", "black")]
        ids = model.generate(**processor(pictures, return_tensors="pt"), max_new_tokens=20)
        assert len({tuple(row.tolist()) for row in ids}) > 1

    def test_the_same_seed_gives_the_same_bytes_and_another_does_not(self, tmp_path: Path, blip_folder: Path) -> None:
        assert_deterministic(tmp_path, blip_folder, "blip-base", "pytorch_model.bin")


class TestFlorence2:
    def test_the_files_are_upstreams(self, florence_folder: Path) -> None:
        assert {path.name for path in florence_folder.iterdir()} == UPSTREAM_FLORENCE.keys()

    def test_full_size_documents_are_upstreams_bytes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(florence2, "tensors", lambda size, seed: [])
        florence2.write(tmp_path, "full", 0)
        assert_upstream(tmp_path, UPSTREAM_FLORENCE)
        assert json.loads((tmp_path / "added_tokens.json").read_text())["<image>"] == 51_289

    def test_full_size_weights_have_upstreams_size_to_the_byte(self) -> None:
        tensors = florence2.tensors("full", 0)
        assert len(archives.safetensors_header(tensors)) + sum(tensor.nbytes for tensor in tensors) == 463_178_864

    @pytest.mark.parametrize("task", ["<CAPTION>", "<OD>", "<OCR>", "<OCR_WITH_REGION>", "<REGION_PROPOSAL>"])
    def test_every_task_answers_and_ends(self, florence: tuple[Any, Any], task: str) -> None:
        model, processor = florence
        image = picture("Hello")
        inputs = processor(images=image, text=task, return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=200)
        assert torch.equal(ids, model.generate(**inputs, max_new_tokens=200))
        assert ids.shape == (1, florence2.ANSWER)
        text = processor.batch_decode(ids, skip_special_tokens=False)[0]
        assert text.startswith("</s><s>")
        assert text.endswith("</s>")
        answer = processor.post_process_generation(text, task=task, image_size=image.size)
        assert answer.keys() == {task}

    def test_upstreams_generation_settings_are_used(self, florence: tuple[Any, Any]) -> None:
        settings = florence[0].generation_config
        assert (settings.num_beams, settings.no_repeat_ngram_size, settings.forced_bos_token_id) == (3, 3, 0)

    def test_the_same_seed_gives_the_same_bytes_and_another_does_not(
        self, tmp_path: Path, florence_folder: Path
    ) -> None:
        assert_deterministic(tmp_path, florence_folder, "florence-2-base", "model.safetensors")


def assert_upstream(folder: Path, expected: dict[str, str | None]) -> None:
    found = {name: digest.sha256_of(folder / name) for name, sha256 in expected.items() if sha256}
    assert found == {name: sha256 for name, sha256 in expected.items() if sha256}


def assert_deterministic(tmp_path: Path, folder: Path, kind: str, weights: str) -> None:
    files = {file.path: file for file in digest.files_of(folder)}
    again = {file.path: file for file in digest.files_of(make(tmp_path / "again", kind, size="tiny"))}
    assert again == files
    assert set_digest(files.values()) == SETS[kind]
    other = {file.path: file for file in digest.files_of(make(tmp_path / "other", kind, size="tiny", seed=1))}
    assert {path for path in files if files[path] != other[path]} == {weights}
