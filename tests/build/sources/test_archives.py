"""Archives are unpacked whole into their folder, or refused with nothing unpacked."""

from __future__ import annotations

import tarfile
import tracemalloc
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.archive_files import GOOD, make_tar, make_zip
from prebake.baked import layout
from prebake.errors import SourceError
from prebake_build.sources import archives


def _symlink(info: zipfile.ZipInfo) -> None:
    info.external_attr = 0o120777 << 16


def _encrypted(body: bytes) -> bytes:
    """The flag in the central directory, which is what readers go by."""
    at = body.index(b"PK\x01\x02") + 8
    return body[:at] + b"\x01" + body[at + 1 :]


@pytest.mark.parametrize(
    ("name", "body", "finding"),
    [
        ("m.zip", make_zip({"config.json": b"", "../evil": b"x"}), '"../evil": leaves the folder'),
        ("m.zip", make_zip({"/etc/evil": b"x"}), '"/etc/evil": leaves the folder'),
        ("m.zip", make_zip({"a/../../evil": b"x"}), '"a/../../evil": leaves the folder'),
        ("m.zip", make_zip({"a\\..\\evil": b"x"}), '"a\\\\..\\\\evil": leaves the folder'),
        ("m.zip", make_zip({"../": b""}), '"../": leaves the folder'),
        ("m.zip", make_zip({"link": b"/etc/passwd"}, _symlink), '"link": is a link or device'),
        ("m.zip", _encrypted(make_zip({"x": b"x"})), '"x": is encrypted'),
        ("m.zip", make_zip({"a": b"x", "a/b": b"x"}), '"a/b": is a duplicate'),
        ("m.zip", make_zip({"a/b": b"x", "a": b"x"}), '"a": is a duplicate'),
        ("m.tar", make_tar(("../evil", tarfile.REGTYPE, b"x")), '"../evil": leaves the folder'),
        ("m.tar", make_tar(("/evil", tarfile.REGTYPE, b"x")), '"/evil": leaves the folder'),
        ("m.tar", make_tar(("..", tarfile.DIRTYPE, b"")), '"..": leaves the folder'),
        ("m.tar", make_tar(("link", tarfile.SYMTYPE, b"/etc/passwd")), '"link": is a link or device'),
        ("m.tar", make_tar(("link", tarfile.LNKTYPE, b"config.json")), '"link": is a link or device'),
        ("m.tar", make_tar(("null", tarfile.CHRTYPE, b"")), '"null": is a link or device'),
        ("m.tar", make_tar(("a", tarfile.REGTYPE, b"x"), ("./a", tarfile.REGTYPE, b"y")), '"./a": is a duplicate'),
    ],
    ids=[
        "zip-dots", "zip-absolute", "zip-dots-inside", "zip-backslashes", "zip-folder-above",
        "zip-symlink", "zip-encrypted", "zip-file-then-folder", "zip-folder-then-file",
        "tar-dots", "tar-absolute", "tar-folder-above", "tar-symlink",
        "tar-hardlink", "tar-device", "tar-twice",
    ],
)  # fmt: skip
def test_an_unsafe_archive_is_refused_whole(tmp_path: Path, name: str, body: bytes, finding: str) -> None:
    (tmp_path / name).write_bytes(body)
    folder = tmp_path / "out" / "folder"
    folder.mkdir(parents=True)
    with pytest.raises(SourceError) as error:
        archives.unpack(tmp_path / name, folder)
    assert str(error.value) == f"{name}: refused, nothing was unpacked:\n  {finding}"
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted([name, "out", "folder"])


def test_an_archive_that_would_unpack_to_far_more_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "FREE_SIZE", 1000)
    (tmp_path / "m.zip").write_bytes(make_zip({"zeros": bytes(100_000)}))
    with pytest.raises(
        SourceError, match=r"it would unpack to 100,000 bytes, more than the [\d,]+ that its size allows$"
    ):
        archives.unpack(tmp_path / "m.zip", tmp_path / "out")


def peak(archive: Path) -> tuple[str, int]:
    """The message with which the archive is refused, and how many bytes that took at once."""
    folder = archive.parent / "out"
    folder.mkdir()
    tracemalloc.start()
    try:
        with pytest.raises(SourceError) as error:
            archives.unpack(archive, folder)
        return str(error.value), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        assert list(folder.iterdir()) == []


DEEP = "a/" * 10_000


@pytest.mark.parametrize("name", [DEEP, DEEP + "b", "b" * 20_000], ids=["folder", "file", "long"])
@pytest.mark.parametrize("kind", ["m.zip", "m.tar.gz"])
def test_a_name_that_is_too_long_is_refused_before_its_parts_are_looked_at(
    tmp_path: Path, kind: str, name: str
) -> None:
    folder = name.endswith("/")
    member = (name.rstrip("/"), tarfile.DIRTYPE, b"") if folder else (name, tarfile.REGTYPE, b"x")
    body = make_zip({name: b"" if folder else b"x"}) if kind == "m.zip" else make_tar(member)
    (tmp_path / kind).write_bytes(body)
    message, bytes_ = peak(tmp_path / kind)
    shown = len(name) - (folder and kind == "m.tar.gz")
    assert message == (
        f'{kind}: refused, nothing was unpacked:\n  "{name[:77]}...": has a name of {shown:,} characters, more than 512'
    )
    assert bytes_ < 2_000_000


@pytest.mark.parametrize("kind", ["m.zip", "m.tar"])
def test_a_name_that_lies_too_deep_is_refused(tmp_path: Path, kind: str) -> None:
    good, deep = "a/" * 32 + "b", "a/" * 33 + "b"
    for name in (good, deep):
        body = make_zip({name: b"x"}) if kind == "m.zip" else make_tar((name, tarfile.REGTYPE, b"x"))
        (tmp_path / kind).write_bytes(body)
        if name == good:
            (tmp_path / "good").mkdir()
            archives.unpack(tmp_path / kind, tmp_path / "good")
    message, _ = peak(tmp_path / kind)
    assert message == f'{kind}: refused, nothing was unpacked:\n  "{deep}": is 33 folders deep, more than 32'


@pytest.mark.parametrize("mark", ["", "/"], ids=["files", "folders"])
def test_an_archive_of_very_many_members_is_refused(tmp_path: Path, mark: str) -> None:
    kind = tarfile.DIRTYPE if mark else tarfile.REGTYPE
    (tmp_path / "m.tar.gz").write_bytes(make_tar(*((f"m{i}", kind, b"") for i in range(30_000))))
    (tmp_path / "m.zip").write_bytes(make_zip({f"m{i}{mark}": b"" for i in range(10_001)}))
    for name in ("m.tar.gz", "m.zip"):
        message, bytes_ = peak(tmp_path / name)
        assert message == f"{name}: refused, nothing was unpacked:\n  it has more than 10,000 members"
        assert bytes_ < 30_000_000
        (tmp_path / "out").rmdir()


def test_a_tar_header_that_is_no_member_is_not_read_whole(tmp_path: Path) -> None:
    name = "b" * 50_000_000
    (tmp_path / "m.tar.gz").write_bytes(make_tar((name, tarfile.REGTYPE, b"x")))
    del name
    message, bytes_ = peak(tmp_path / "m.tar.gz")
    assert "has a header of 50,000,0" in message
    assert bytes_ < 5_000_000


def test_a_message_lists_the_first_findings(tmp_path: Path) -> None:
    (tmp_path / "m.zip").write_bytes(make_zip({f"../{i}": b"" for i in range(50)}))
    message, _ = peak(tmp_path / "m.zip")
    assert message.splitlines()[-2:] == ['  "../19": leaves the folder', "  and 30 more"]


@pytest.mark.parametrize("name", ["m.zip", "m.tar.gz"])
def test_a_damaged_archive_is_refused(tmp_path: Path, name: str) -> None:
    whole = make_zip(GOOD) if name == "m.zip" else make_tar(("x", tarfile.REGTYPE, bytes(range(256)) * 100))
    for body in (b"", b"no archive", whole[: len(whole) // 2]):
        (tmp_path / name).write_bytes(body)
        with pytest.raises(SourceError, match=rf"^{name}: is damaged, or not an archive of this type: "):
            archives.unpack(tmp_path / name, tmp_path)


@given(st.text(st.sampled_from("ab./\\:"), min_size=1, max_size=8))
def test_no_member_name_leaves_the_folder(name: str) -> None:
    """Whatever a zip or tar calls its member, it lands inside the folder, or nothing is unpacked."""
    for kind, body in (("m.zip", make_zip({name: b"x"})), ("m.tar", make_tar((name, tarfile.REGTYPE, b"x")))):
        with TemporaryDirectory() as top:
            archive, folder = Path(top) / kind, Path(top) / "out" / "folder"
            archive.write_bytes(body)
            folder.mkdir(parents=True)
            try:
                archives.unpack(archive, folder)
            except SourceError:
                assert not layout.is_inside(name)
            found = {path for path in Path(top).rglob("*") if path.is_file()} - {archive}
            assert len(found) <= 1
            assert all(folder in path.parents for path in found)
