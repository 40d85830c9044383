"""The keys of `models.toml` that say which tensors of a checkpoint make the model."""

from __future__ import annotations

from pathlib import Path

import pytest

from prebake.documents import toml
from prebake.errors import ConfigError
from prebake_build.declared.spec import read_spec


def write(folder: Path, lines: str) -> Path:
    path = folder / "models.toml"
    path.write_text(f'[models.m]\nsource = "path:c"\n{lines}\n', encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('class = "torch:a:b"\nfile = 3',
         "file: expected a string, a list of strings or a table of strings, found a whole number (3)"),
        ('class = "torch:a:b"\nfile = []', "file: expected a string, a list of strings or a table of strings, found a "
                                            "list"),
        ('class = "torch:a:b"\nfile = "../w.pth"', 'file: "../w.pth" is not a path in the checkpoint'),
        ('class = "torch:a:b"\nfile = { a = "/w.pth" }', 'file: "/w.pth" is not a path in the checkpoint'),
        ('class = "torch:a:b"\nfile = ["w.pth", "w.pth"]', 'file: "w.pth" is named twice'),
        ('class = "tensors"\nfile = ["w.pth"]', "file: expected a string, found a list"),
        ('class = "tensors:x"', 'class: "tensors:x" is not of the form "tensors"'),
        ('class = "tensors"\nkey = "x"', "key: is only for the family torch (this model's family is tensors)"),
        ('class = "tensors"\nwarmup = { inputs = {} }',
         "warmup: the family tensors has no network and no forward: write a function, "
         'warmup = "package.module:function"'),
        ('class = "torch:a:b"\nkey = 3', "key: expected a string, found a whole number (3)"),
        ('class = "torch:a:b"\nkey = ""', "key: is empty: leave it out if the file's object is the state dict"),
        ('class = "torch:a:b"\nignore = "x"', 'ignore: expected a list, found the string "x"'),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_with_its_path(tmp_path: Path, lines: str, message: str) -> None:
    path = write(tmp_path, lines)
    with pytest.raises(ConfigError) as error:
        read_spec(path)
    assert str(error.value) == f"{path}: models.m.{message}"


@pytest.mark.parametrize("file", ['"w.pth"', '["a.pth", "b.pth"]', '{ a = "a.pth", b = "b.pth" }'])
def test_the_keys_of_the_family_torch(tmp_path: Path, file: str) -> None:
    text = f'class = "torch:a:b"\nfile = {file}\nkey = "params_ema"\nignore = ["x.*"]'
    assert read_spec(write(tmp_path, text)).models[0].options == {
        "arguments": {}, "file": toml.loads(f"x = {file}")["x"], "key": "params_ema", "ignore": ["x.*"],
    }  # fmt: skip
