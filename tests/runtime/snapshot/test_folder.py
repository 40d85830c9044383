"""The files of a snapshot against their manifest, and what `prebake inspect` and `prebake verify` say of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.snapshots import Program
from prebake.__main__ import main
from prebake.errors import DocumentError, NewerFormatError, SnapshotError
from prebake.snapshot import features, folder, inspection
from prebake.snapshot.folder import IMAGE, MANIFEST, TABLE, Manifest, findings, read_table

PLAIN = "from prebake import snapshot\nsnapshot.here(watched=[__import__('pathlib').Path(__file__)])\nprint('on')\n"


@pytest.fixture
def snapshot(program: Program) -> Path:
    program.write(PLAIN)
    done = program.dump()
    assert done.returncode == 0, done.stderr
    return program.snapshot


def verify(path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "prebake", "verify", str(path), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def edited(path: Path, **changes: Any) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(document | changes), encoding="utf-8")


def test_a_snapshot_as_it_was_written(snapshot: Path) -> None:
    assert findings(snapshot) == []
    assert findings(snapshot, hashes=False) == []
    done = verify(snapshot)
    assert (done.returncode, done.stdout, done.stderr) == (0, "snapshot  -  as promised\n", "")
    assert sorted(path.name for path in snapshot.iterdir()) == [IMAGE, MANIFEST, TABLE]


def test_a_changed_byte_of_memory(snapshot: Path) -> None:
    image = snapshot / IMAGE
    with image.open("r+b") as file:
        file.seek(image.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    expected = Manifest.read(snapshot).hashes[IMAGE]
    (found,) = findings(snapshot)
    assert found.startswith(f"{image}: sha256 ")
    assert found.endswith(f", expected {expected}")
    assert findings(snapshot, hashes=False) == []
    done = verify(snapshot)
    assert (done.returncode, done.stdout, done.stderr) == (1, "snapshot  -  differs\n", f"prebake: {found}\n")
    assert verify(snapshot, "--quick").returncode == 0


def test_truncated_and_missing_files(snapshot: Path) -> None:
    image, table = snapshot / IMAGE, snapshot / TABLE
    size = image.stat().st_size
    os.truncate(image, size - 1)
    table.unlink()
    assert findings(snapshot) == [
        f"{table}: No such file or directory",
        f"{image}: has {size - 1} bytes, expected {size}",
        f"{table}: No such file or directory",
    ]


def test_a_damaged_table(snapshot: Path) -> None:
    table = snapshot / TABLE
    content = bytearray(table.read_bytes())
    content[500] ^= 1
    table.write_bytes(content)
    first, second = findings(snapshot)
    assert first == f"{table}: its checksum differs: it is damaged"
    assert second.startswith(f"{table}: sha256 ")
    with pytest.raises(SnapshotError) as raised:
        read_table(snapshot)
    assert str(raised.value) == first


def test_memory_of_another_dump(snapshot: Path) -> None:
    with (snapshot / IMAGE).open("r+b") as file:
        file.write(bytes(16))
    assert findings(snapshot, hashes=False) == [f"{snapshot / IMAGE}: belongs to another table"]


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"format": 1}, DocumentError, "expected format 2, found 1: make the snapshot again with this Prebake"),
        ({"format": "x"}, DocumentError, "expected format 2, found 'x': make the snapshot again with this Prebake"),
        ({"format": 3}, NewerFormatError, "format 3 is newer than this Prebake reads (2): update it"),
        ({"files": {}}, DocumentError,
         "expected `kernel`, `content`, and `bytes` and `sha256` of memory.img and table"),
        ({"content": 1}, DocumentError,
         "expected `kernel`, `content`, and `bytes` and `sha256` of memory.img and table"),
    ],
)  # fmt: skip
def test_other_manifests(snapshot: Path, changes: dict[str, Any], kind: type[Exception], message: str) -> None:
    path = snapshot / MANIFEST
    edited(path, **changes)
    with pytest.raises(kind) as raised:
        Manifest.read(snapshot)
    assert str(raised.value) == f"{path}: {message}"
    assert findings(snapshot) == [f"{path}: {message}"]
    assert verify(snapshot).returncode == 1


def test_no_manifest_or_no_json(tmp_path: Path) -> None:
    path = tmp_path / MANIFEST
    expected = f"{path}: No such file or directory: expected a folder that `prebake snapshot` wrote"
    assert findings(tmp_path) == [expected]
    path.write_text("{", encoding="utf-8")
    assert findings(tmp_path)[0].startswith(f"{path}: it is no JSON: ")


def test_a_snapshot_has_no_signature(snapshot: Path, tmp_path: Path) -> None:
    done = verify(snapshot, "--key", str(tmp_path / "key.pub"))
    assert done.returncode == 2
    expected = f"prebake: error: {snapshot}: --key: it is a snapshot, which has no signature (sign the image)\n"
    assert done.stderr == expected


def test_an_unfinished_folder_is_no_snapshot(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), folder.new_image(tmp_path / "new"):
        raise KeyboardInterrupt
    assert [*(tmp_path / "new").iterdir()] == []


# ---- inspect ---------------------------------------------------------------------------------------------------------


def test_inspect_tells_what_is_in_it(snapshot: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(snapshot), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == inspection.describe(snapshot)
    assert document["unfit_here"] == []
    assert str(snapshot.parent / "program.py") in document["watched_files"]
    assert document["kernel"] == os.uname().release
    content = document["memory_img"]
    assert sum(content.values()) + 4096 == document["bytes"][IMAGE] == (snapshot / IMAGE).stat().st_size
    assert content["[heap]"] > 0 < content["[stack]"]
    assert any("/libc.so" in name for name in content)
    copied = document["mappings"]["memory.img, copied at each start"]["bytes"]
    assert document["mappings"]["memory.img"]["bytes"] + copied + 4096 == document["bytes"][IMAGE]
    assert main(["inspect", str(snapshot)]) == 0
    text = capsys.readouterr().out
    assert text.split(maxsplit=2)[:2] == ["snapshot", document["id"]]
    assert "nothing (prebake snapshot --rehearse)" in text
    assert text.endswith("fits\n")


def test_inspect_tells_what_does_not_fit(snapshot: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = snapshot.parent / "program.py"
    program.write_text("other", encoding="utf-8")
    assert inspection.describe(snapshot)["unfit_here"] == [f"{program} has another size"]
    program.unlink()
    assert main(["inspect", str(snapshot)]) == 0
    assert f"does not fit: {program} is missing\n" in capsys.readouterr().out


def test_inspect_of_a_damaged_snapshot(snapshot: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.truncate(snapshot / TABLE, 100)
    assert main(["inspect", str(snapshot)]) == 1
    assert capsys.readouterr().err == f"prebake: error: {snapshot / TABLE}: it is truncated\n"
    assert main(["inspect", str(snapshot), "--tensors"]) == 2
    assert capsys.readouterr().err == f"prebake: error: {snapshot}: --tensors: it is a snapshot, which has none\n"


def test_a_table_is_read_as_it_was_written(snapshot: Path) -> None:
    assert read_table(snapshot).to_bytes() == (snapshot / TABLE).read_bytes()


def test_names_of_features() -> None:
    words = [0] * 12
    words[0], words[1], words[11] = 1 << 28 | 1 << 2, 1 << 26, 1 << 2
    assert features.names(words) == ["0:2", "avx", "sse2", "xcr0:avx"]
    assert features.level(["sse2"]) == "x86-64"
    v2 = ["cx16", "lahf_lm", "popcnt", "sse3", "sse4_1", "sse4_2", "ssse3"]
    assert features.level(v2) == "x86-64-v2"
    assert (
        features.level([*v2, *["avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "osxsave"]]) == "x86-64-v3"
    )
