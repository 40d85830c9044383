"""What transformers works out at import is kept from one start to the next, and only while it is true."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.runtime_fakes import python_says
from prebake.startup import memo

SCRIPT = """
import json, sys
from prebake.startup import memo
memo.install()
import transformers
from transformers.utils import import_utils
from pathlib import Path
models = Path(transformers.__file__).parent / "models"
scanned = []
plain = import_utils.create_import_structure_from_path
import_utils.create_import_structure_from_path = lambda path: scanned.append(str(path)) or plain(path)
kept = import_utils.define_import_structure(models, prefix="models")
bare = import_utils.define_import_structure(str(models / "__init__.py"))
before = list(scanned)
compute = import_utils.define_import_structure
remembers = getattr(compute, "__code__", (lambda: 0).__code__).co_filename == memo.__file__
fresh = getattr(compute, "__wrapped__", compute)(models, prefix="models")
def names(found):
    return {str(sorted(k)): {m: sorted(n) for m, n in v.items() if m.startswith("models.")} for k, v in found.items()}
same = bare == getattr(compute, "__wrapped__", compute)(str(models / "__init__.py"))
answer = {"scanned": before, "equal": names(kept) == names(fresh) and same, "remembers": remembers}
print(json.dumps({**answer, "class": transformers.BertConfig.__name__}))
"""


def start(folder: Path | str) -> dict[str, object]:
    environment = {**os.environ, "PREBAKE_MEMO": str(folder)}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True)
    answer: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_the_second_start_reads_the_memo_and_finds_the_same(tmp_path: Path) -> None:
    start(tmp_path)
    (file,) = tmp_path.glob("*.json")
    written = file.stat().st_mtime_ns
    answer = start(tmp_path)
    assert answer == {"scanned": [], "equal": True, "class": "BertConfig", "remembers": True}
    assert file.stat().st_mtime_ns == written


def test_importing_the_library_reads_no_model_that_nobody_asked_for(tmp_path: Path) -> None:
    script = """
import sys
from prebake.startup import memo
memo.install()
opened = []
sys.addaudithook(lambda event, arguments: opened.append(str(arguments[0])) if event == "open" else None)
import transformers
transformers.BertConfig
print(sum("/transformers/models/zamba" in path for path in opened))
"""
    starts = [
        subprocess.run([sys.executable, "-c", script], env={**os.environ, "PREBAKE_MEMO": str(tmp_path)},
                       capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]  # fmt: skip
    assert int(starts[0]) > 0
    assert int(starts[1]) == 0


def test_a_damaged_memo_is_computed_anew_and_mended(tmp_path: Path) -> None:
    start(tmp_path)
    (file,) = tmp_path.glob("*.json")
    good = file.read_text()
    file.write_text(good[: len(good) // 2])
    assert start(tmp_path)["class"] == "BertConfig"
    assert file.read_text() == good


def test_a_folder_that_cannot_be_written_only_costs_time(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    answer = start(blocked / "memo")
    assert (answer["class"], answer["equal"], answer["remembers"]) == ("BertConfig", True, True)
    assert blocked.read_text() == ""


def test_an_empty_variable_turns_it_off() -> None:
    answer = start("")
    assert (answer["class"], answer["remembers"]) == ("BertConfig", False)


def test_the_identity_changes_with_what_is_installed(tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (tmp_path / "__init__.py").write_text("version 1")
    first = memo._identity(models)
    assert memo._identity(models) == first
    (models / "new").mkdir()
    second = memo._identity(models)
    (tmp_path / "__init__.py").write_text("version 10")
    assert len({first, second, memo._identity(models)}) == 3


def place(root: Path) -> Path:
    """Models of a library, as they would lie there."""
    models = root / "models"
    (models / "bert").mkdir(parents=True)
    (root / "__init__.py").write_text("")
    (models / "bert" / "modeling_bert.py").write_text("__all__ = ['A']")
    return models


def edit(path: Path, text: str) -> None:
    """Of the same size and, to the second, of the same time; its folder's time stays as well."""
    before = path.stat()
    path.write_text(text)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


@pytest.mark.parametrize("named", ["", "memo"])
def test_an_edited_file_of_an_editable_installation_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    monkeypatch.setenv("PREBAKE_MEMO", named and str(tmp_path / named))
    models = place(tmp_path / "src" / "transformers")
    before = memo._identity(models)
    edit(models / "bert" / "modeling_bert.py", "__all__ = ['B']")
    assert memo._identity(models) != before


def test_files_of_site_packages_are_looked_at_unless_a_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cold start must not read 2,500 inodes of an image that never changes."""
    models = place(tmp_path / "site-packages" / "transformers")
    identities = []
    for named in (None, "memo", None, "memo"):
        if named:
            monkeypatch.setenv("PREBAKE_MEMO", named)
        else:
            monkeypatch.delenv("PREBAKE_MEMO", raising=False)
        identities.append(memo._identity(models))
        if len(identities) == 2:
            edit(models / "bert" / "modeling_bert.py", "__all__ = ['B']")
    assert identities[0] != identities[2]
    assert identities[1] == identities[3]


def test_an_edit_is_in_what_the_library_gets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREBAKE_MEMO", raising=False)
    models = place(tmp_path / "src" / "transformers")

    def scan(path: str, prefix: str | None = None) -> memo.Structure:
        """As far as it matters: the names that stand in the one file."""
        return {frozenset(): {"bert": {(models / "bert" / "modeling_bert.py").read_text()[-3:-2]}}}

    for name in "AAB":
        edit(models / "bert" / "modeling_bert.py", f"__all__ = ['{name}']")
        kept = memo._remembering(scan, tmp_path / "kept")
        assert kept(str(models)) == kept(str(models)) == {frozenset(): {"bert": {name}}}


def test_files_that_cannot_be_looked_at_are_left_to_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREBAKE_MEMO", raising=False)
    models = place(tmp_path / "src" / "transformers")
    (models / "gone.py").symlink_to("nowhere")
    kept = memo._remembering(lambda path, prefix=None: {frozenset(): {str(prefix): set()}}, tmp_path / "kept")
    assert kept(str(models), "models") == {frozenset(): {"models": set()}}
    assert not (tmp_path / "kept").exists()


def test_a_user_without_a_home_has_no_memos(monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers run under ids that `/etc/passwd` does not have."""

    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("PREBAKE_MEMO", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    assert memo.folder() is None
    finders = list(sys.meta_path)
    memo.install()
    assert sys.meta_path == finders


WITHOUT_HOME = """
import os, pwd
def unknown(uid): raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = unknown
del os.environ["HOME"]
for name in ("PREBAKE_MEMO", "XDG_CACHE_HOME"): os.environ.pop(name, None)
from prebake.startup import quickstart
quickstart.begin()
"""


def test_a_start_of_a_user_without_a_home_begins() -> None:
    python_says(WITHOUT_HOME, HOME="/nowhere")


def test_without_a_name_it_is_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PREBAKE_MEMO", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert memo.folder() == tmp_path / "prebake" / "memo"
