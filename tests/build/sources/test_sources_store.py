"""Stores: objects are fetched in pieces, resumed, held against the lock, and no message shows a credential."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.baking import declare, prebake
from helpers.s3_server import BUCKET, KEY, SECRET, put, s3_server, use
from prebake.errors import ConfigError, SourceError
from prebake_build.cache.checkpoints import Cache
from prebake_build.sources import store as stores
from prebake_build.sources.store import StoreSource

WHERE = "models.toml: models.tiny.source"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture
def bucket(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, address)


def source(uri: str) -> StoreSource:
    return StoreSource.parse(uri, uri.partition(":")[2], WHERE)


# --- objects -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("bucket")
def test_all_objects_below_a_prefix_are_the_checkpoint() -> None:
    put({
        "all/w.pth": b"weights", "all/sub/config.json": b"{}", "all/": b"", "all/.hidden": b"x", "all2/x.pth": b"x",
        "all/empty.txt": b"",
    })  # fmt: skip
    tiny = source(f"s3://{BUCKET}/all")
    with Cache() as cache:
        resolved = cache.resolve(tiny)
        folder = cache.checkpoint(tiny, resolved, verify=True)
        found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found == {"w.pth": b"weights", "sub/config.json": b"{}", "empty.txt": b""}
    assert resolved.revision.startswith("sha256:")
    assert resolved == source(f"s3://{BUCKET}/all/").resolve()


@pytest.mark.usefixtures("bucket")
def test_one_object_is_a_checkpoint_of_one_file() -> None:
    put({"one/w.pth": b"weights", "one/w.pth.old": b"x"})
    files = source(f"s3://{BUCKET}/one/w.pth").resolve().files
    assert [(file.path, file.size) for file in files] == [("w.pth", 7)]


@pytest.mark.usefixtures("bucket")
def test_objects_that_changed_since_they_were_locked_are_refused() -> None:
    put({"change/a.pth": b"weights", "change/b.pth": b"weights", "change/c.pth": b"weights"})
    tiny = source(f"s3://{BUCKET}/change")
    resolved = tiny.resolve()
    put({"change/a.pth": b"more weights"})
    import s3fs

    s3fs.S3FileSystem(skip_instance_cache=True).rm_file(f"{BUCKET}/change/b.pth")
    with Cache() as cache, pytest.raises(SourceError) as error:
        cache.checkpoint(tiny, resolved)
    assert str(error.value) == (
        f"{tiny.uri}: its objects differ from the locked ones: run `prebake lock`\n"
        "  a.pth: locked 7 bytes, found 12\n"
        "  b.pth: locked 7 bytes, found none"
    )


@pytest.mark.usefixtures("bucket")
@pytest.mark.parametrize(
    ("uri", "message"),
    [
        (f"s3://{BUCKET}/nothing", "there is no object of this name or below this prefix: check bucket and prefix"),
        ("s3://no-bucket/x", "there is no such bucket or object (The specified bucket does not exist): check bucket "
                             "and prefix"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_said(uri: str, message: str) -> None:
    put({})
    with pytest.raises(SourceError) as error:
        source(uri).resolve()
    assert str(error.value) == f"{uri}: {message}"


# --- pieces ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("bucket")
def test_an_interrupted_fetch_goes_on_where_it_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    body = os.urandom(100_000)
    put({"long/w.pth": body})
    monkeypatch.setattr("prebake_build.sources.pieces.PIECE", 10_000)
    monkeypatch.setattr("prebake_build.sources.pieces.THREADS", 1)
    real, asked, left = stores._reader, [], [4]

    def reader(store: Any) -> Any:
        def read(path: str, start: int, end: int) -> bytes:
            asked.append(start)
            if not left[0]:
                raise ConnectionResetError("the network is gone")
            left[0] -= 1
            return bytes(real(store)(path, start, end))

        return read

    monkeypatch.setattr(stores, "_reader", reader)
    tiny = source(f"s3://{BUCKET}/long/w.pth")
    with Cache() as cache:
        with pytest.raises(SourceError) as error:
            cache.resolve(tiny)
        assert str(error.value) == (
            f"{tiny.uri}: cannot read the store: ConnectionResetError: the network is gone: check the network and the "
            "endpoint"
        )
        assert [path.name[16:] for path in sorted(cache.checkpoints.iterdir())] == [".lock", ".parts.tmp"]
        asked.clear()
        left[0] = 100
        folder = cache.checkpoint(tiny, cache.resolve(tiny))
        assert asked == list(range(40_000, 100_000, 10_000))
        assert (folder / "w.pth").read_bytes() == body
        assert not list(cache.checkpoints.glob("*.tmp"))


@pytest.mark.usefixtures("bucket")
def test_an_object_that_changed_meanwhile_is_fetched_from_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    put({"changing/w.pth": b"a" * 30})
    monkeypatch.setattr("prebake_build.sources.pieces.PIECE", 10)
    monkeypatch.setattr("prebake_build.sources.pieces.THREADS", 1)
    real = stores._reader

    def failing(store: Any) -> Any:
        def read(path: str, start: int, end: int) -> bytes:
            if start == 20:
                raise ConnectionResetError("the network is gone")
            return bytes(real(store)(path, start, end))

        return read

    tiny = source(f"s3://{BUCKET}/changing/w.pth")
    with Cache() as cache:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SourceError):
            patch.setattr(stores, "_reader", failing)
            cache.resolve(tiny)
        put({"changing/w.pth": b"b" * 30})
        folder = cache.checkpoint(tiny, cache.resolve(tiny))
    assert (folder / "w.pth").read_bytes() == b"b" * 30


@pytest.mark.usefixtures("bucket")
def test_unfinished_downloads_are_pruned(monkeypatch: pytest.MonkeyPatch) -> None:
    put({"pruned/w.pth": b"a" * 30})
    monkeypatch.setattr(stores, "_reader", lambda store: lambda path, start, end: b"short")
    tiny = source(f"s3://{BUCKET}/pruned/w.pth")
    with Cache() as cache:
        with pytest.raises(SourceError) as error:
            cache.resolve(tiny)
        assert str(error.value) == (
            f"{tiny.uri}: {BUCKET}/pruned/w.pth: expected 30 bytes from byte 0, found 5: the object changed meanwhile"
        )
        assert cache.remove_leftovers() == []
        (partial,) = cache.partials()
        assert (partial.folder.name[16:], partial.size) == (".parts.tmp", 30)
        assert cache.remove(partial)
        cache.remove_leftovers()
        assert not list(cache.checkpoints.iterdir())


@pytest.mark.usefixtures("bucket")
def test_a_disk_that_is_too_small_is_said_before_the_download(monkeypatch: pytest.MonkeyPatch) -> None:
    put({"large/w.pth": b"a" * 30})
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=29))
    tiny = source(f"s3://{BUCKET}/large/w.pth")
    with Cache() as cache:
        with pytest.raises(SourceError) as error:
            cache.resolve(tiny)
        assert not list(cache.checkpoints.glob("*.parts.tmp/*.done"))
    assert str(error.value).startswith(f"{tiny.uri}: needs 30 bytes, but {cache.checkpoints}/")
    assert str(error.value).endswith(
        " has 29 free: free some space, run `prebake cache prune`, or put the cache elsewhere with --cache or "
        "PREBAKE_CACHE"
    )


# --- credentials -------------------------------------------------------------------------------------------------


class Leaky:
    """A store whose errors hold what it was asked with."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def find(self, root: str, detail: bool) -> None:
        raise self.error


@pytest.mark.usefixtures("bucket")
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError(f"signed {KEY} with {SECRET}"), "cannot read the store: ValueError: signed *** with ***: check the "
                                                    "network and the endpoint"),
        (OSError("GET https://host/w.pth?X-Amz-Signature=abc failed"),
         "cannot read the store: OSError: GET https://host/w.pth?*** failed: check the network and the endpoint"),
        (ConnectionError("http://me:pw@proxy refused"),
         "cannot read the store: ConnectionError: http://***@proxy refused: check the network and the endpoint"),
        (PermissionError("Forbidden"),
         "the store refuses access (Forbidden): check the credentials that its library reads from the environment; in "
         "an image build, hand them over as a secret, never as a build argument"),
    ],
    ids=["keys", "signed URL", "proxy", "forbidden"],
)  # fmt: skip
def test_no_message_shows_a_credential(error: Exception, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "_open", lambda uri: (Leaky(error), "weights/w"))
    with pytest.raises(SourceError) as caught:
        source("s3://weights/w").resolve()
    assert str(caught.value) == f"s3://weights/w: {message}"
    assert caught.value.__suppress_context__


@pytest.mark.usefixtures("bucket")
def test_the_lock_names_no_credential(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put({"locked/w.pth": b"weights"})
    declared = declare(
        tmp_path, f'[models.m]\nsource = "s3://{BUCKET}/locked"\nclass = "torch:helpers.networks:linear"\n'
    )
    code, out, err = prebake(capsys, "lock", "--models", declared)
    text = declared.with_suffix(".lock").read_text()
    assert code == 0
    assert f'source = "s3://{BUCKET}/locked"' in text
    assert not [shown for shown in (text, out, err) if KEY in shown or SECRET in shown or "127.0.0.1" in shown]


# --- the URI -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("s3:bucket/x", '"s3:bucket/x" is not of the form "s3://BUCKET/PREFIX"'),
        ("s3://bucket", '"s3://bucket" is not of the form "s3://BUCKET/PREFIX"'),
        ("gs://bucket/", '"gs://bucket/" is not of the form "gs://BUCKET/PREFIX"'),
        ("sftp://me:pw@host/x", "leave user and password out of the URI: they would end up in the lock and the image"),
        ("s3://bucket/x?versionId=1",
         '"s3://bucket/x?versionId=1": a bucket and a prefix are expected, without query or fragment'),
        ("s3://bucket/a/../b", '"s3://bucket/a/../b": "a/../b" is not a plain path'),
    ],
)  # fmt: skip
def test_a_uri_that_is_no_object_is_refused(uri: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        source(uri)
    assert str(error.value) == f"{WHERE}: {message}"


@pytest.mark.parametrize(
    ("uri", "library", "install"),
    [
        ("s3://bucket/x", "s3fs", "'prebake-build[s3]'"),
        ("gs://bucket/x", "gcsfs", "'prebake-build[gs]'"),
        ("az://bucket/x", "adlfs", "'prebake-build[az]'"),
    ],
)
def test_a_library_that_is_missing_is_named(
    uri: str, library: str, install: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec  # noqa: F401  its attribute `registry` is no module

    protocol = uri.partition(":")[0]
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(vars(sys.modules["fsspec.registry"])["_registry"], protocol, raising=False)
    with pytest.raises(ConfigError) as error:
        source(uri).resolve()
    assert str(error.value) == f"{uri}: the library for {protocol}:// is not installed: pip install {install}"
