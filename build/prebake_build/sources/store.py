"""`s3://bucket/prefix`, `gs://…`, `az://…` and other stores that fsspec reaches: all objects below a prefix, or one.

Stores publish sizes and versions, but no sha256: resolving fetches. Credentials, endpoint and region are those that the
protocol's library finds itself, in the environment or in its own files; they are never part of a URI.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prebake.baked import layout
from prebake.baked.manifest import set_digest
from prebake.documents.messages import quote, reason
from prebake.errors import ConfigError, PrebakeError, SourceError
from prebake_build.files import digest
from prebake_build.sources import Resolved
from prebake_build.sources.pieces import Remote, fetch_all

_INSTALL = {
    "s3": "'prebake-build[s3]'", "s3a": "'prebake-build[s3]'",
    "gs": "'prebake-build[gs]'", "gcs": "'prebake-build[gs]'",
    "az": "'prebake-build[az]'", "abfs": "'prebake-build[az]'", "abfss": "'prebake-build[az]'",
}  # fmt: skip
"""What to install for a protocol; for others, fsspec says it."""

_SECRET = re.compile(r"KEY|SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|CONNECTION_STRING|SAS", re.IGNORECASE)
"""Names of variables whose values never stand in a message."""
_SHORTEST_SECRET = 6
_QUERY = re.compile(r"(https?://[^\s?\"'<>]+)\?[^\s\"'<>]+")
_USER = re.compile(r"//[^/\s@]+@")


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreSource:
    """All objects below one prefix, or one object. Each method reads the environment when it is called."""

    uri: str
    protocol: str

    @classmethod
    def parse(cls, uri: str, rest: str, where: str, base: Path = Path()) -> StoreSource:
        """Raises ConfigError that begins with `where`."""
        protocol = uri.partition(":")[0]
        bucket, _, path = rest.removeprefix("//").partition("/")
        if not rest.startswith("//") or not bucket or not path.strip("/"):
            raise ConfigError(f"{where}: {quote(uri)} is not of the form {quote(f'{protocol}://BUCKET/PREFIX')}")
        if "@" in bucket and ":" in bucket.partition("@")[0]:
            raise ConfigError(
                f"{where}: leave user and password out of the URI: they would end up in the lock and the image"
            )
        if "?" in rest or "#" in rest or not rest.isprintable():
            raise ConfigError(f"{where}: {quote(uri)}: a bucket and a prefix are expected, without query or fragment")
        if not layout.is_inside(path.rstrip("/")):
            raise ConfigError(f"{where}: {quote(uri)}: {quote(path)} is not a plain path")
        return cls(uri=uri, protocol=protocol)

    def resolve(self) -> Resolved:
        """Fetch, hash and discard. Raises SourceError."""
        with tempfile.TemporaryDirectory(prefix="prebake-") as folder:
            return self.resolve_into(Path(folder))

    def resolve_into(self, folder: Path) -> Resolved:
        """Fetch all objects into `folder`. Raises like `resolve`."""
        with self._asking() as (store, root):
            fetch_all(self._objects(store, root), _reader(store), folder, self.uri)
        files = digest.files_of(folder)
        return Resolved(revision=set_digest(files), files=files)

    def fetch(self, resolved: Resolved, folder: Path) -> None:
        """Fetch the objects of `resolved`. Raises SourceError if one is gone or has another size."""
        with self._asking() as (store, root):
            found = {remote.name: remote for remote in self._objects(store, root)}
            wrong = []
            for file in resolved.files:
                size = found[file.path].size if file.path in found else None
                if size != file.size:
                    wrong.append(f"{file.path}: locked {file.size:,} bytes, found {'none' if size is None else size}")
            if wrong:
                raise SourceError(
                    f"{self.uri}: its objects differ from the locked ones: run `prebake lock`\n  " + "\n  ".join(wrong)
                )
            fetch_all([found[file.path] for file in resolved.files], _reader(store), folder, self.uri)

    def _objects(self, store: Any, root: str) -> list[Remote]:
        """Every object, sorted by name. Names that begin with a dot are left out, as in a `path:` source."""
        listed = store.find(root, detail=True)
        objects = []
        for path, info in sorted(listed.items()):
            if info.get("type") != "file" or path.endswith("/"):  # consoles make empty objects as folders
                continue
            name = path.removeprefix(root).lstrip("/") or root.rpartition("/")[2]
            if any(part.startswith(".") for part in name.split("/")):
                continue
            if not layout.is_inside(name):
                raise SourceError(f"{self.uri}: {quote(path)} has a name that a checkpoint cannot contain")
            objects.append(Remote(path=path, name=name, size=int(info["size"] or 0), version=_version(info)))
        if not objects:
            raise SourceError(
                f"{self.uri}: there is no object of this name or below this prefix: check bucket and prefix"
            )
        return objects

    @contextmanager
    def _asking(self) -> Iterator[tuple[Any, str]]:
        """The store, and the prefix as it spells it. Any error inside becomes a SourceError without secrets."""
        try:
            store, root = _open(self.uri)
        except ImportError as error:
            wanted = _INSTALL.get(self.protocol)
            install = f"pip install {wanted}" if wanted else _redacted(reason(error))
            raise ConfigError(f"{self.uri}: the library for {self.protocol}:// is not installed: {install}") from None
        except Exception as error:  # libraries check credentials when they are made
            raise SourceError(f"{self.uri}: {_explain(error)}") from None
        try:
            yield store, root.rstrip("/")
        except PrebakeError:
            raise
        except OSError as error:
            if error.errno in digest.FULL:
                raise
            raise SourceError(f"{self.uri}: {_explain(error)}") from None
        except Exception as error:  # each library has its own errors, which may hold the signed request
            raise SourceError(f"{self.uri}: {_explain(error)}") from None


def _open(uri: str) -> tuple[Any, str]:
    """The store, with what the URI says about its host or account, and the path in it."""
    from fsspec.core import url_to_fs

    for name in ("aiobotocore", "botocore"):  # at INFO, S3's client tells where it found the credentials, each time
        if (logger := logging.getLogger(name)).level == logging.NOTSET:
            logger.setLevel(logging.WARNING)
    store, path = url_to_fs(uri, skip_instance_cache=True, use_listings_cache=False)
    return store, str(path)


def _reader(store: Any) -> Any:
    def read(path: str, start: int, end: int) -> bytes:
        return bytes(store.cat_file(path, start=start, end=end))

    return read


def _version(info: Any) -> str:
    for key in ("ETag", "etag", "md5Hash", "content_md5", "LastModified", "last_modified", "updated", "mtime"):
        if value := info.get(key):
            return str(value)
    return ""


def _explain(error: BaseException) -> str:
    text = _redacted(" ".join(reason(error).split()))[:300]
    if isinstance(error, FileNotFoundError):
        return f"there is no such bucket or object ({text}): check bucket and prefix"
    if isinstance(error, PermissionError) or "credential" in text.lower():
        return (
            f"the store refuses access ({text}): check the credentials that its library reads from the environment; in "
            "an image build, hand them over as a secret, never as a build argument"
        )
    return f"cannot read the store: {type(error).__name__}: {text}: check the network and the endpoint"


def _redacted(text: str) -> str:
    """The text without values of secret variables, queries of signed URLs, and user and password of a URL."""
    secrets = {value for name, value in os.environ.items() if _SECRET.search(name) and len(value) >= _SHORTEST_SECRET}
    for value in sorted(secrets, key=len, reverse=True):
        text = text.replace(value, "***")
    return _USER.sub("//***@", _QUERY.sub(r"\1?***", text))
