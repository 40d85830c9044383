"""While one thread constructs a skeleton, other threads and forked children find transformers and torch unchanged."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from helpers.runtime_fakes import change_manifest, python_says

CONSTRUCTING = """
import faulthandler, os, sys, threading
from pathlib import Path
import torch
from prebake.families import compat
compat.torchvision_operators()
import transformers
from transformers import BertConfig, BertModel
from transformers.models.blip.modeling_blip import BlipTextModel
from prebake.families.family import BakedModel
from prebake.families.transformers import TransformersFamily
faulthandler.dump_traceback_later(100, exit=True)
inside, go_on, found = threading.Event(), threading.Event(), []
config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
                    initializer_range=1e-30)

def ordinary():
    "What an ordinary construction gives: dtype, and whether it initialised, which gives next to nothing here."
    model = BertModel(config)
    largest = model.encoder.layer[0].output.dense.weight.abs().max().item()
    return str(torch.zeros(1).dtype), str(model.dtype), largest < 1e-20

plain = BlipTextModel.__init__
def slow(self, *arguments, **named):
    inside.set()
    assert go_on.wait(60)
    plain(self, *arguments, **named)
BlipTextModel.__init__ = slow

def construct():
    found.append(TransformersFamily().skeleton(BakedModel.open(Path(sys.argv[1]))))
constructing = threading.Thread(target=construct)
constructing.start()
assert inside.wait(60)
"""


@pytest.fixture
def bfloat16(tiny_models: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "caption"
    shutil.copytree(tiny_models / "caption", folder)
    change_manifest(folder, options={"dtype": "bfloat16"})
    return folder


def test_another_thread_constructs_an_ordinary_model_meanwhile(bfloat16: Path) -> None:
    said = python_says(
        CONSTRUCTING + "print(*ordinary())\n"
        "go_on.set(); constructing.join()\n"
        "print(found[0].dtype, found[0].text_decoder.bert.encoder.layer[0].attention.self.query.weight.is_meta)\n"
        "print(*ordinary())",
        bfloat16,
    )
    assert said.splitlines() == [
        "torch.float32 torch.float32 True",
        "torch.bfloat16 True",
        "torch.float32 torch.float32 True",
    ]


def test_a_child_forked_meanwhile_constructs_an_ordinary_model(bfloat16: Path) -> None:
    said = python_says(
        CONSTRUCTING + "torch.set_num_threads(1)\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    print(*ordinary(), torch.get_default_dtype(), flush=True)\n"
        "    os._exit(0)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        "go_on.set(); constructing.join()",
        bfloat16,
    )
    assert said.splitlines() == ["torch.float32 torch.float32 True torch.float32", "0"]


def test_a_fork_waits_for_the_librarys_own_loader_which_changes_the_default_dtype(bfloat16: Path) -> None:
    """Of the ordinary tier. Otherwise the child would keep bfloat16 for ever."""
    said = python_says(
        CONSTRUCTING + "go_on.set(); constructing.join()\n"
        "from prebake import load\n"
        "inside.clear(); go_on.clear()\n"
        "loading = threading.Thread(target=lambda: found.append(load(Path(sys.argv[1]), ['ordinary'])))\n"
        "loading.start()\n"
        "assert inside.wait(60)\n"
        "print(torch.get_default_dtype())\n"
        "threading.Timer(0.3, go_on.set).start()\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    print(torch.get_default_dtype(), flush=True)\n"
        "    os._exit(0)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        "loading.join()\n"
        "print(found[1].tier, found[1].model.dtype)",
        bfloat16,
    )
    assert said.splitlines() == ["torch.bfloat16", "torch.float32", "0", "ordinary torch.bfloat16"]


def test_loads_are_made_in_this_thread_alone_and_other_patches_see_no_mark_of_theirs() -> None:
    from threading import Thread

    from transformers import PreTrainedModel

    from prebake.families.construction import loaded_by

    class Other(PreTrainedModel):  # type: ignore[misc]
        pass

    marked = hasattr(PreTrainedModel.from_pretrained, "_prebake")  # by `adopt`, if its tests ran before
    made: list[object] = []
    elsewhere: list[object] = []

    def load() -> None:
        try:
            elsewhere.append(Other.from_pretrained("/no/such/folder", local_files_only=True))
        except Exception as error:  # the library's own, because this thread is not inside
            elsewhere.append(error)

    with loaded_by(lambda cls, path, given: (cls, path, given), made):
        assert Other.from_pretrained("a", x=1) == (Other, "a", {"x": 1})
        thread = Thread(target=load)
        thread.start()
        thread.join()
    assert made == [(Other, "a", {"x": 1})]
    assert [isinstance(found, Exception) for found in elsewhere] == [True]
    assert hasattr(PreTrainedModel.from_pretrained, "_prebake") == marked
