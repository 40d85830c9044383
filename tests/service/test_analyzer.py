"""Tasks are checked before a model sees them, and answers are plain values."""

from __future__ import annotations

import inspect
import re

import pytest

from helpers.serving import Pretended, Reader
from image_analyzer.analyzer import TASKS, TASKS_WITHOUT_TEXT, Analyzer, check_task
from image_analyzer.example import example
from prebake.errors import ConfigError, LoadError, UnknownModelError
from prebake.families.compat import torchvision_operators

torchvision_operators()


@pytest.mark.parametrize("task", TASKS)
def test_a_task_takes_text_or_none(task: str) -> None:
    right, wrong = ("", "a car") if task in TASKS_WITHOUT_TEXT else ("a car", "")
    check_task(task, right)
    with pytest.raises(ConfigError, match=re.escape(task)):
        check_task(task, wrong)


def test_a_task_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r'^"<DANCE>" is not a task of Florence-2 \(expected one of <CAPTION>, '):
        check_task("<DANCE>", "")


def test_tasks_are_those_of_the_installed_processor() -> None:
    from transformers import Florence2Processor

    text = inspect.getsource(Florence2Processor)
    assert [task for task in TASKS if f'"{task}"' not in text] == []


def test_readings_are_plain_values() -> None:
    assert Analyzer(Pretended(ocr=Reader())).read(example()) == [
        {"text": "글", "box": [[0, 0], [640, 0], [9, 9], [0, 9]], "confidence": 0.5}
    ]


def test_boxes_in_a_reduced_picture_are_in_the_pixels_of_the_full_one() -> None:
    analyzer = Analyzer(Pretended(ocr=Reader()))
    full = [{"text": "글", "box": [[0, 0], [1281, 0], [18, 18], [0, 18]], "confidence": 0.5}]
    assert analyzer.read(example(), (1281, 960)) == full
    assert analyzer.analyze(example(), (1281, 960)) == {"text": full}


def test_everything_is_asked_of_the_models_that_are_there() -> None:
    assert Analyzer(Pretended(ocr=Reader())).analyze(example()).keys() == {"text"}


def test_a_model_that_is_not_there_is_named() -> None:
    with pytest.raises(UnknownModelError, match=r'^/models: no model "caption"$'):
        Analyzer(Pretended()).caption(example())


def test_a_model_that_is_wrongly_configured_is_no_fault_of_the_question() -> None:
    with pytest.raises(LoadError, match=r"^transformers has no Such$"):
        Analyzer(Pretended(caption=ConfigError("transformers has no Such"))).caption(example())
