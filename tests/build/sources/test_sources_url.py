"""`url:` files and archives, and the downloader below."""

from __future__ import annotations

import errno
import hashlib
import socket
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.archive_files import GOOD, make_tar, make_zip
from helpers.hub_server import Answer, FileServer
from prebake.errors import ConfigError, IntegrityError, SourceError
from prebake_build.cache.checkpoints import Cache
from prebake_build.sources.url import UrlSource

NO_NAME = "does not end in a file name (a file, or an archive: .zip, .tar, .tar.gz, .tgz)"
WHERE = "models.toml: models.tiny.source"


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def source(url: str, pin: str = "") -> UrlSource:
    return UrlSource.parse(f"url:{url}{pin}", f"{url}{pin}", WHERE)


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
        "damaged in transit; if you trust the new one, run `prebake lock` (and update `#sha256=`)"
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
    def full(response: object, part: Path, name: str) -> None:
        part.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(part))

    monkeypatch.setattr("prebake_build.sources.download._copy", full)
    tiny = source(f"{server.url}/models/weights.pt")
    with Cache() as cache, pytest.raises(SourceError) as error:
        cache.resolve(tiny)
    assert str(error.value).startswith(f"{tiny.uri}: no space left while writing below {cache.checkpoints}/")
    assert [path.suffix for path in cache.checkpoints.iterdir()] == [".lock"]


# --- resumed -----------------------------------------------------------------------------------------------------

BODY = bytes(range(256)) * 40


def cut(at: int, etag: str | None = '"v1"') -> Answer:
    """An answer whose connection ends after `at` bytes."""
    headers = {"Content-Length": str(len(BODY)), "X-Cut": "1", **({"ETag": etag} if etag else {})}
    return Answer(headers=headers, body=BODY[:at])


def rest(start: int, body: bytes = BODY) -> Answer:
    headers = {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}
    return Answer(status=206, headers=headers, body=body[start:])


def test_an_interrupted_download_goes_on_where_it_ended(server: FileServer) -> None:
    server.script = [cut(1000), rest(1000)]
    resolved = source(f"{server.url}/w.pt").resolve()
    assert resolved.revision == f"sha256:{sha256(BODY)}"
    assert [request.range for request in server.requests] == [None, "bytes=1000-"]


def test_the_next_process_goes_on_too(server: FileServer) -> None:
    server.script = [cut(500), *[Answer(status=502)] * 3]
    tiny = source(f"{server.url}/w.pt")
    with Cache() as cache:
        with pytest.raises(SourceError, match="502 Bad Gateway"):
            cache.resolve(tiny)
        assert [path.name[16:] for path in sorted(cache.checkpoints.iterdir())] == [".lock", ".parts.tmp"]
        server.script = [rest(500)]
        server.requests.clear()
        folder = cache.checkpoint(tiny, cache.resolve(tiny))
        assert (folder / "w.pt").read_bytes() == BODY
        assert [request.range for request in server.requests] == ["bytes=500-"]
        assert not list(cache.checkpoints.glob("*.tmp"))


@pytest.mark.parametrize("etag", [None, 'W/"v1"'], ids=["no version", "a weak one"])
def test_without_a_version_it_begins_again(server: FileServer, etag: str | None) -> None:
    server.script = [cut(1000, etag), Answer(body=BODY)]
    assert source(f"{server.url}/w.pt").resolve().revision == f"sha256:{sha256(BODY)}"
    assert [request.range for request in server.requests] == [None, None]


@pytest.mark.parametrize("etag", ['"v1"', '"v2"'], ids=["shorter", "another version"])
def test_the_rest_of_another_version_is_not_taken(server: FileServer, etag: str) -> None:
    new = b"new" * (1 if etag == '"v1"' else 1000)
    server.script = [cut(1000), Answer(headers={"ETag": etag}, body=new), Answer(body=new)]  # it ignores If-Range
    assert source(f"{server.url}/w.pt").resolve().revision == f"sha256:{sha256(new)}"
    assert [request.range for request in server.requests] == [None, "bytes=1000-", None]


def test_a_file_that_became_shorter_is_begun_again(server: FileServer) -> None:
    server.script = [cut(1000), Answer(status=416), Answer(body=b"new")]
    assert source(f"{server.url}/w.pt").resolve().revision == f"sha256:{sha256(b'new')}"
    assert [request.range for request in server.requests] == [None, "bytes=1000-", None]


def test_another_part_than_the_one_asked_for_is_not_taken(server: FileServer) -> None:
    server.script = [cut(1000), rest(900), Answer(body=BODY)]
    assert source(f"{server.url}/w.pt").resolve().revision == f"sha256:{sha256(BODY)}"
    assert [request.range for request in server.requests] == [None, "bytes=1000-", None]


def test_nothing_is_drawn_where_there_is_no_terminal(server: FileServer, capfd: pytest.CaptureFixture[str]) -> None:
    source(f"{server.url}/models/weights.pt").resolve()
    assert capfd.readouterr() == ("", "")


# --- the URI -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ("", '"" is not an http:// or https:// URL with a host'),
        ("ftp://host/x", '"ftp://host/x" is not an http:// or https:// URL with a host'),
        ("file:///etc/passwd", '"file:///etc/passwd" is not an http:// or https:// URL with a host'),
        ("https:///x", '"https:///x" is not an http:// or https:// URL with a host'),
        ("https://host:99999/x", '"https://host:99999/x" is not a URL: Port out of range 0-65535'),
        ("https://me:pw@host/x", "leave user and password out of the URL: they would end up in the lock and the image"),
        ("https://host/a b", '"https://host/a b" has characters that must be percent-encoded in a URL'),
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


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("m.zip", make_zip({"sub/": b"", **GOOD})),
        ("m.tgz", make_tar(*((name, tarfile.REGTYPE, body) for name, body in GOOD.items()))),
        ("m.tar.gz", make_tar((".", tarfile.DIRTYPE, b""),
                              *((f"./{name}", tarfile.REGTYPE, body) for name, body in GOOD.items()))),
        ("m.tar", make_tar(*((name, tarfile.REGTYPE, body) for name, body in GOOD.items()), mode="w:")),
    ],
    ids=["zip", "tgz", "tar.gz", "tar"],
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
