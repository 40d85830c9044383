"""A folder is in its place whole or not at all, with one mode and one time, whatever happens on the way."""

from __future__ import annotations

import ctypes
import errno
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from helpers.baking import names, tree
from prebake.baked import layout
from prebake.errors import ConfigError, PrebakeError
from prebake_build.baking import writer
from prebake_build.baking.tensor_files import write_tensors
from prebake_build.baking.writer import alone_in, make_canonical, new_folder
from prebake_build.files import atomic

is_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount or to become another user")


def fill(folder: Path, text: str) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "file").write_text(text)
    (folder / layout.MANIFEST).write_text(text)


def bake(output: Path, text: str, name: str = "caption") -> None:
    with alone_in(output), new_folder(output, name) as folder:
        fill(folder, text)


def content(output: Path, name: str = "caption") -> str:
    assert (output / name / "sub" / "file").read_text() == (output / name / layout.MANIFEST).read_text()
    return (output / name / "sub" / "file").read_text()


def test_a_folder_appears_with_one_mode_one_mtime_and_nothing_beside_it(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        bake(tmp_path / "deep" / "models", "new")
    finally:
        os.umask(before)
    found = tree(tmp_path / "deep" / "models" / "caption")
    assert {path: (oct(mode), mtime) for path, (mode, mtime, _) in found.items()} == {
        ".": ("0o755", 0), "sub": ("0o755", 0), "sub/file": ("0o644", 0), "manifest.json": ("0o644", 0),
    }  # fmt: skip
    assert names(tmp_path / "deep" / "models") == ["caption"]


@is_root
def test_root_gives_files_to_root(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    os.chown(tmp_path / "f", 1000, 1000)
    make_canonical(tmp_path)
    assert ((tmp_path / "f").stat().st_uid, (tmp_path / "f").stat().st_gid) == (0, 0)


def test_a_second_bake_replaces_the_folder_whole(tmp_path: Path) -> None:
    bake(tmp_path, "old")
    (tmp_path / "caption" / "only in the old one").write_text("")
    bake(tmp_path, "new")
    assert content(tmp_path) == "new"
    assert not (tmp_path / "caption" / "only in the old one").exists()
    assert names(tmp_path) == ["caption"]


def test_a_failure_leaves_what_stood_there_and_nothing_else(tmp_path: Path) -> None:
    bake(tmp_path, "old")
    before = tree(tmp_path / "caption")
    with pytest.raises(ZeroDivisionError), alone_in(tmp_path), new_folder(tmp_path, "caption") as folder:
        fill(folder, "new")
        raise ZeroDivisionError
    assert tree(tmp_path / "caption") == before
    assert names(tmp_path) == ["caption"]


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, lambda path: path.symlink_to("nowhere")],
                         ids=["folder", "file", "dangling symlink"])  # fmt: skip
def test_what_is_no_baked_model_is_never_replaced(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "docs")
    with pytest.raises(ConfigError) as caught:
        bake(tmp_path, "new", "docs")
    assert str(caught.value) == (
        f"{tmp_path}/docs: exists and is not a baked model (it has no manifest.json): move it, or name another output"
    )
    assert names(tmp_path) == ["docs"]


class WithoutExchange:
    """A C library whose kernel has no renameat2."""

    def __init__(self, *_: Any, **__: Any) -> None:
        ctypes.set_errno(errno.ENOSYS)

    def renameat2(self, *_: Any) -> int:
        ctypes.set_errno(errno.ENOSYS)
        return -1


def test_a_folder_is_replaced_where_the_kernel_cannot_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bake(tmp_path, "old")
    monkeypatch.setattr("ctypes.CDLL", WithoutExchange)
    bake(tmp_path, "new")
    assert content(tmp_path) == "new"
    assert names(tmp_path) == ["caption"]


def test_a_folder_is_replaced_where_the_c_library_knows_no_exchange(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bake(tmp_path, "old")
    monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: SimpleNamespace())
    bake(tmp_path, "new")
    assert content(tmp_path) == "new"


def test_killed_between_the_two_renames_the_next_bake_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bake(tmp_path, "old")
    monkeypatch.setattr("ctypes.CDLL", WithoutExchange)
    rename = Path.rename

    def rename_once(self: Path, target: Path) -> Path:
        if self.name.endswith("~") or target.name.endswith("~"):
            return rename(self, target)
        os._exit(9)

    child = multiprocessing.get_context("fork").Process(target=_with, args=(Path, "rename", rename_once, tmp_path))
    child.start()
    child.join()
    assert child.exitcode == 9
    assert not (tmp_path / "caption").exists()
    with alone_in(tmp_path):
        assert content(tmp_path) == "old"
    assert names(tmp_path) == ["caption"]


def _with(owner: Any, name: str, value: Any, output: Path) -> None:
    setattr(owner, name, value)
    bake(output, "new")


@pytest.mark.parametrize("moment", ["make_canonical", "sync_tree", "put_in_place", "sync_folder", "shutil.rmtree"])
def test_killed_at_any_step_the_folder_is_the_old_or_the_new_one_and_the_next_bake_clears_up(
    tmp_path: Path, moment: str
) -> None:
    bake(tmp_path, "old")
    owner: Any = shutil if "." in moment else atomic if moment == "sync_folder" else writer
    name = moment.rpartition(".")[2]
    child = multiprocessing.get_context("fork").Process(
        target=_with, args=(owner, name, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL), tmp_path)
    )
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert content(tmp_path) == ("new" if moment in ("sync_folder", "shutil.rmtree") else "old")
    assert len(names(tmp_path)) == 2
    with alone_in(tmp_path):
        assert names(tmp_path) == ["caption"]


def test_folders_of_other_names_are_no_leftovers(tmp_path: Path) -> None:
    for name in ("caption", "baking-caption", ".hidden"):
        (tmp_path / name).mkdir()
    with alone_in(tmp_path):
        assert names(tmp_path) == [".hidden", "baking-caption", "caption"]


def test_two_bakes_do_not_work_in_one_folder_at_once(tmp_path: Path) -> None:
    hold = ("import sys; from pathlib import Path; from prebake_build.baking.writer import alone_in\n"
            "with alone_in(Path(sys.argv[1])):\n"
            "    (Path(sys.argv[1]) / '.baking-of-another').mkdir(); print('in', flush=True); input()\n")  # fmt: skip
    other = subprocess.Popen([sys.executable, "-c", hold, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdin and other.stdout
    assert other.stdout.readline() == b"in\n"
    waiting = multiprocessing.get_context("fork").Process(target=bake, args=(tmp_path, "new"))
    waiting.start()
    time.sleep(0.2)
    assert waiting.is_alive()
    assert (tmp_path / ".baking-of-another").is_dir()
    other.communicate(b"\n")
    waiting.join()
    assert waiting.exitcode == 0
    assert names(tmp_path) == ["caption"]


# --- what the system refuses -------------------------------------------------------------------------------------


def test_a_full_disk_is_said_and_leaves_the_old_model(tmp_path: Path, small_disk: Callable[[Path, str], Path]) -> None:
    output = small_disk(tmp_path / "models", "256k")
    bake(output, "old")
    with pytest.raises(PrebakeError) as caught, alone_in(output), new_folder(output, "caption") as folder:
        write_tensors(folder / "model.safetensors", {"w": torch.ones(200_000)})
    assert str(caught.value) == (
        f"{output}: cannot write the model caption: No space left on device (0 bytes are free): "
        "free some space, then bake again. The previous folder is unchanged."
    )
    assert caught.value.exit_code == 1
    assert content(output) == "old"
    assert names(output) == ["caption"]


def test_an_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "models").touch()
    with pytest.raises(ConfigError) as caught:
        bake(tmp_path / "models", "new")
    assert str(caught.value) == f"{tmp_path}/models: cannot bake into this folder: File exists: name another"
