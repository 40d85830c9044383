"""Loads are kept, logged once where they should be noticed, and written to a file that processes share."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from helpers.adopted import clean
from prebake.adopt import loads
from prebake.adopt.loads import Load, inside, is_inside, record
from prebake.documents.table import Table
from prebake.errors import DocumentError

LOAD = Load(
    library="transformers", function="BertModel.from_pretrained", uri="hf:acme/tiny", class_="transformers:BertModel",
    dtype="float32", detail={"variant": "fp16"}, outcome="mapped", model="tiny", seconds=0.25,
)  # fmt: skip


def test_a_line_is_read_back() -> None:
    assert LOAD.line.endswith("}\n") and LOAD.line.count("\n") == 1
    assert Load.from_table(Table(json.loads(LOAD.line), "loads")) == LOAD


def test_a_wrong_line_is_refused() -> None:
    with pytest.raises(DocumentError) as caught:
        Load.from_table(Table(LOAD.to_dict() | {"outcome": "mappd"}, "loads"))
    assert str(caught.value) == (
        'loads: outcome: "mappd" is not one of mapped, baked folder, original, failed: did you mean "mapped"?'
    )


def test_loads_are_kept_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loads, "KEPT", 2)
    for _ in range(3):
        record(LOAD)
    assert loads.loads == [LOAD, LOAD]
    assert loads.counts == {("transformers", "mapped"): 3}


def test_a_service_that_loads_ever_new_files_keeps_few_messages(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loads, "KEPT", 2)
    for number in range(4):
        record(Load(library="torch", function="torch.load", uri=f"path:/tmp/{number}", reason="why"))
    assert caplog.messages == [
        f"path:/tmp/{number}: not baked (why): loaded by torch as without Prebake" for number in range(2)
    ]
    assert loads.counts == {("torch", "original"): 4}


def test_messages(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            record(LOAD)
            record(Load(library="timm", function="create_model", reason="no model is baked"))
            record(Load(library="timm", function="f", uri="hf:a/b", outcome="baked folder", model="m", reason="why"))
            record(Load(library="timm", function="f", uri="hf:a/b", outcome="failed", reason="OSError: no disk"))
    mapped = (logging.INFO, "tiny: hf:acme/tiny: mapped in 0.250 s")
    assert [(item.levelno, item.message) for item in caplog.records] == [
        mapped,
        (logging.WARNING, "a model of timm: not baked (no model is baked): loaded by timm as without Prebake"),
        (logging.WARNING, "m: hf:a/b loaded by timm from the baked folder: why"),
        (logging.WARNING, "hf:a/b: timm failed to load it: OSError: no disk"),
        mapped,
    ]


def test_inside_a_load_is_of_one_thread() -> None:
    seen: list[bool] = []
    with inside():
        with inside():
            pass
        assert is_inside()
        thread = threading.Thread(target=lambda: seen.append(is_inside()))
        thread.start()
        thread.join()
    assert (seen, is_inside()) == ([False], False)


def test_processes_share_a_file(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom prebake.adopt.loads import Load, record\n"
        "for number in range(200): record(Load(library=sys.argv[1], function='f', detail={'number': number}))\n"
    )
    env = clean(PREBAKE_OBSERVE=str(tmp_path / "loads"))
    processes = [subprocess.Popen([sys.executable, "-c", code, name], env=env) for name in "ab"]
    assert [process.wait(60) for process in processes] == [0, 0]
    lines = [json.loads(line) for line in (tmp_path / "loads").read_text().splitlines()]
    assert sorted((line["library"], line["detail"]["number"]) for line in lines) == [
        (name, number) for name in "ab" for number in range(200)
    ]


def test_a_file_that_cannot_be_written_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PREBAKE_OBSERVE", str(tmp_path / "missing" / "loads"))
    record(LOAD)
    assert caplog.messages == [f"{tmp_path}/missing/loads: a line is not recorded: No such file or directory"]
