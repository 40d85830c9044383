"""`url:` files and archives, and the downloader and unpacker below."""

from __future__ import annotations

import errno
import hashlib
import io
import socket
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub_server import Answer, FileServer
from prebake import layout
from prebake.errors import ConfigError, IntegrityError, SourceError
from prebake_build.cache import Cache
from prebake_build.sources import archives
from prebake_build.sources.url import UrlSource

NO_NAME = "ends in no file name (a file, or an archive: .zip, .tar, .tar.gz, .tgz)"
WHERE = "models.toml: models.tiny.source"


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def source(url: str, pin: str = "") -> UrlSource:
    return UrlSource.parse(f"url:{url}{pin}", f"{url}{pin}", WHERE)


def make_zip(members: dict[str, bytes], change: Callable[[zipfile.ZipInfo], None] | None = None) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, body in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            if change:
                change(info)
            opened.writestr(info, body)
    return out.getvalue()


def make_tar(*members: tuple[str, bytes, bytes], mode: str = "w:gz") -> bytes:
    """Members as (name, type, content or target)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as opened:  # type: ignore[call-overload]
        for name, kind, body in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            if kind == tarfile.REGTYPE:
                info.size = len(body)
            else:
                info.linkname = body.decode()
            opened.addfile(info, io.BytesIO(body))
    return out.getvalue()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with FileServer({"models/weights.pt": b"weights" * 1000}) as server:
        yield server


# --- one file ----------------------------------------------------------------------------------------------------


def test_the_revision_is_the_sha256_of_the_download(server: FileServer) -> None:
    body = server.files["models/weights.pt"]
    resolved = source(f"{server.url}/models/weights.pt").resolve()
    assert resolved.revision == f"sha256:{sha256(body)}"
    assert [(file.path, file.size, file.sha256) for file in resolved.files] == [("weights.pt", 7000, sha256(body))]


def test_what_resolving_fetched_is_not_fetched_again(server: FileServer) -> None:
    tiny = source(f"{server.url}/models/weights.pt")
    with Cache() as cache:
        resolved = cache.resolve(tiny)
        folder = cache.checkpoint(tiny, resolved)
    assert (folder / "weights.pt").read_bytes() == server.files["models/weights.pt"]
    assert len(server.requests) == 1


def test_a_locked_url_is_fetched_into_an_empty_cache(server: FileServer) -> None:
    tiny = source(f"{server.url}/models/weights.pt")
    resolved = tiny.resolve()
    with Cache() as cache:
        assert (cache.checkpoint(tiny, resolved) / "weights.pt").exists()


def test_a_pin_that_does_not_fit_is_refused(server: FileServer) -> None:
    found = sha256(server.files["models/weights.pt"])
    tiny = source(f"{server.url}/models/weights.pt", f"#sha256={'0' * 64}")
    with Cache() as cache, pytest.raises(IntegrityError) as error:
        cache.resolve(tiny)
    assert str(error.value) == (
        f"{tiny.uri}: expected sha256 {'0' * 64}, found {found}: upstream has changed the file, or it was "
        "damaged on the way; take the new one with `prebake lock` (and in `#sha256=`) if you trust it"
    )
    assert [path.suffix for path in cache.checkpoints.iterdir()] == [".lock"]


def test_a_file_that_changed_since_it_was_locked_is_refused(server: FileServer) -> None:
    tiny = source(f"{server.url}/models/weights.pt")
    resolved = tiny.resolve()
    server.files["models/weights.pt"] = b"other"
    with Cache() as cache, pytest.raises(IntegrityError, match="upstream has changed the file"):
        cache.checkpoint(tiny, resolved)


def test_redirects_are_followed_on_http(server: FileServer) -> None:
    server.script = [Answer(status=302, headers={"Location": "/models/weights.pt"})]
    assert source(f"{server.url}/latest/weights.pt").resolve().files[0].size == 7000


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_redirects_away_from_http_are_refused(server: FileServer, target: str) -> None:
    server.script = [Answer(status=302, headers={"Location": target})]
    with pytest.raises(SourceError, match=r"the server answers 302 .*(which is refused|is not allowed)"):
        source(f"{server.url}/x.pt").resolve()


def test_transient_failures_are_tried_again(server: FileServer) -> None:
    cut = Answer(headers={"Content-Length": "7000", "X-Cut": "1"}, body=b"weights")
    server.script = [Answer(status=503), Answer(status=429), cut]
    assert source(f"{server.url}/models/weights.pt").resolve().files[0].size == 7000
    assert len(server.requests) == 4


def test_four_failures_are_enough(server: FileServer) -> None:
    server.script = [Answer(status=502)] * 9
    with pytest.raises(SourceError) as error:
        source(f"{server.url}/models/weights.pt?signature=secret").resolve()
    assert str(error.value) == (
        f"url:{server.url}/models/weights.pt?signature=secret: cannot fetch {server.url}/models/weights.pt: "
        "the server answers 502 Bad Gateway (4 tries): check the address, the network and the proxy settings"
    )
    assert len(server.requests) == 4


def test_a_missing_file_is_asked_for_once(server: FileServer) -> None:
    with pytest.raises(SourceError) as error:
        source(f"{server.url}/models/none.pt").resolve()
    assert str(error.value) == (
        f"url:{server.url}/models/none.pt: cannot fetch {server.url}/models/none.pt: the server answers 404 Not Found"
    )
    assert len(server.requests) == 1


def test_a_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(SourceError, match=r"Connection refused \(4 tries\): check the address, the network"):
        source(f"{url}/models/weights.pt").resolve()


def test_a_full_disk_is_said_and_leaves_nothing(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(response: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("prebake_build.sources.download._copy", full)
    tiny = source(f"{server.url}/models/weights.pt")
    with Cache() as cache, pytest.raises(SourceError) as error:
        cache.resolve(tiny)
    assert str(error.value).startswith(f"{tiny.uri}: no space left while writing below {cache.checkpoints}/")
    assert [path.suffix for path in cache.checkpoints.iterdir()] == [".lock"]


# --- the URI -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ("", '"" is no http:// or https:// URL with a host'),
        ("ftp://host/x", '"ftp://host/x" is no http:// or https:// URL with a host'),
        ("file:///etc/passwd", '"file:///etc/passwd" is no http:// or https:// URL with a host'),
        ("https:///x", '"https:///x" is no http:// or https:// URL with a host'),
        ("https://host:99999/x", '"https://host:99999/x" is no URL: Port out of range 0-65535'),
        ("https://me:pw@host/x", "leave user and password out of the URL: they would end up in the lock and the image"),
        ("https://host/a b", '"https://host/a b" has characters that a URL spells with % and two digits'),
        ("https://host/x#md5=1", '"#md5=1" is not "#sha256=" and 64 hexadecimal digits'),
        ("https://host/x#", '"#" is not "#sha256=" and 64 hexadecimal digits'),
        ("https://host/", f'"https://host/" {NO_NAME}'),
        ("https://host/..", f'"https://host/.." {NO_NAME}'),
        ("https://host/..%2fx", f'"https://host/..%2fx" {NO_NAME}'),
    ],
)  # fmt: skip
def test_a_uri_that_cannot_be_fetched_is_refused(rest: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        source(rest)
    assert str(error.value) == f"{WHERE}: {message}"


def test_the_file_name_is_the_last_part_without_query() -> None:
    assert source("https://host/a/w%2Dx.pt?download=1").name == "w-x.pt"


# --- archives ----------------------------------------------------------------------------------------------------

GOOD = {"config.json": b"{}", "sub/weights.bin": b"w" * 1000}


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("m.zip", make_zip({"sub/": b"", **GOOD})),
        ("m.tgz", make_tar(*((name, tarfile.REGTYPE, body) for name, body in GOOD.items()))),
        ("m.tar.gz", make_tar((".", tarfile.DIRTYPE, b""),
                              *((f"./{name}", tarfile.REGTYPE, body) for name, body in GOOD.items()))),
        ("m.tar", make_tar(*((name, tarfile.REGTYPE, body) for name, body in GOOD.items()), mode="w:")),
    ],
)  # fmt: skip
def test_an_archive_becomes_the_checkpoint(server: FileServer, name: str, body: bytes) -> None:
    server.files[name] = body
    tiny = source(f"{server.url}/{name}", f"#sha256={sha256(body)}")
    with Cache() as cache:
        resolved = cache.resolve(tiny)
        folder = cache.checkpoint(tiny, resolved, verify=True)
        found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found == GOOD
    assert resolved.revision == f"sha256:{sha256(body)}"


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
        ("m.zip", make_zip({"a": b"x", "a/b": b"x"}), '"a/b": is there twice'),
        ("m.zip", make_zip({"a/b": b"x", "a": b"x"}), '"a": is there twice'),
        ("m.tar", make_tar(("../evil", tarfile.REGTYPE, b"x")), '"../evil": leaves the folder'),
        ("m.tar", make_tar(("/evil", tarfile.REGTYPE, b"x")), '"/evil": leaves the folder'),
        ("m.tar", make_tar(("..", tarfile.DIRTYPE, b"")), '"..": leaves the folder'),
        ("m.tar", make_tar(("link", tarfile.SYMTYPE, b"/etc/passwd")), '"link": is a link or device'),
        ("m.tar", make_tar(("link", tarfile.LNKTYPE, b"config.json")), '"link": is a link or device'),
        ("m.tar", make_tar(("null", tarfile.CHRTYPE, b"")), '"null": is a link or device'),
        ("m.tar", make_tar(("a", tarfile.REGTYPE, b"x"), ("./a", tarfile.REGTYPE, b"y")), '"./a": is there twice'),
    ],
)
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


@pytest.mark.parametrize("name", ["m.zip", "m.tar.gz"])
def test_a_damaged_archive_is_refused(tmp_path: Path, name: str) -> None:
    whole = make_zip(GOOD) if name == "m.zip" else make_tar(("x", tarfile.REGTYPE, bytes(range(256)) * 100))
    for body in (b"", b"no archive", whole[: len(whole) // 2]):
        (tmp_path / name).write_bytes(body)
        with pytest.raises(SourceError, match=rf"^{name}: is damaged, or no archive of this kind: "):
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
