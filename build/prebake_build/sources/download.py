"""Downloads one file over HTTP(S) to disk; follows redirects, retries transient failures, resumes what was interrupted.

Uses `urllib` because huggingface_hub's HTTP client (requests, httpx, httpx2) depends on its version.
"""

from __future__ import annotations

import http.client
import logging
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit, urlunsplit

from prebake.documents.messages import quote, reason
from prebake.errors import ConfigError, SourceError
from prebake_build.files.digest import CHUNK
from prebake_build.files.progress import Progress
from prebake_build.sources import parts

TRIES = 4
TIMEOUT = 30.0
"""Maximum seconds without a byte."""
BACK_OFF = 1.0
"""Seconds before the second try; doubled for each further try."""

_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)", re.ASCII)

_log = logging.getLogger(__name__)


class _TransientError(Exception):
    """Worth another try."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        scheme = urlsplit(newurl).scheme
        if scheme not in ("http", "https") or (req.type == "https" and scheme == "http"):
            refused = f"redirects to {_shown(newurl)}, which is refused (only to https, or from http to http)"
            raise urllib.error.HTTPError(req.full_url, code, refused, headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def check_url(url: str, where: str) -> str:
    """The URL, after checking that it may be fetched.

    It must be http or https, with a host, and without user or password, which would end up in the lock and in the
    image's manifest. Raises ConfigError that begins with `where`.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"{where}: {quote(url)} is not a URL: {error}") from None
    if parts.username is not None or parts.password is not None:
        raise ConfigError(
            f"{where}: leave user and password out of the URL: they would end up in the lock and the image"
        )
    if parts.scheme not in ("http", "https") or not host or port == 0:
        raise ConfigError(f"{where}: {quote(url)} is not an http:// or https:// URL with a host")
    if any(character.isspace() or not character.isprintable() for character in url) or not url.isascii():
        raise ConfigError(f"{where}: {quote(url)} has characters that must be percent-encoded in a URL")
    return url


def download(url: str, path: Path, *, uri: str) -> None:
    """Stream `url` into the new file `path`; `uri` begins messages.

    What arrived stays where `parts` keeps it: the next try, also that of a later process, asks for the rest, if the
    server names the file's version (a strong ETag). Raises SourceError; an OSError from writing (a full disk) passes
    through.
    """
    growing = _Growing(parts.folder_or(path.parent) / f"{parts.name_of(url)}.part")
    for attempt in range(TRIES):
        try:
            _stream(url, growing, path.name, uri)
        except _TransientError as error:
            if attempt + 1 == TRIES:
                raise SourceError(
                    f"{uri}: cannot fetch {_shown(url)}: {error} ({TRIES} tries): "
                    "check the address, the network and the proxy settings"
                ) from None
            _log.warning("%s: %s: trying again", uri, error)
            time.sleep(BACK_OFF * 2**attempt)
        else:
            shutil.move(growing.part, path)
            growing.forget()
            return


@dataclass(frozen=True, slots=True)
class _Growing:
    """An unfinished download, and beside it the version of the file that it is the beginning of."""

    part: Path

    @property
    def _tag(self) -> Path:
        return self.part.with_suffix(".etag")

    def wanted(self) -> dict[str, str]:
        """The headers that ask for the rest, or none if there is nothing to go on with."""
        if not self.part.is_file() or not self._tag.is_file() or not (size := self.part.stat().st_size):
            return {}
        return {"Range": f"bytes={size}-", "If-Range": self._tag.read_text(encoding="latin-1")}

    def begin(self, etag: str) -> None:
        """Forget what is there; `etag` is the version of what comes now, or empty."""
        self.forget()
        if etag.startswith('"'):  # a weak one does not promise the same bytes
            self._tag.write_text(etag, encoding="latin-1")

    def continues(self, headers: Any) -> bool:
        """Whether an answer with these headers is the rest of this version."""
        found = _RANGE.fullmatch(headers.get("Content-Range") or "")
        size = self.part.stat().st_size if self.part.is_file() else 0
        same = headers.get("ETag") in (None, self._tag.read_text(encoding="latin-1") if self._tag.is_file() else None)
        return found is not None and same and int(found[1]) == size and (found[2] == "*" or int(found[2]) > size)

    def forget(self) -> None:
        self.part.unlink(missing_ok=True)
        self._tag.unlink(missing_ok=True)


def _stream(url: str, growing: _Growing, name: str, uri: str) -> None:
    headers = {"User-Agent": "prebake-build", "Accept-Encoding": "identity", **growing.wanted()}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310  check_url has checked the scheme
    try:
        with urllib.request.build_opener(_Redirects).open(request, timeout=TIMEOUT) as response:
            if response.status != 206:
                growing.begin(response.headers.get("ETag") or "")
            elif not growing.continues(response.headers):
                growing.forget()
                raise _TransientError("the server sent another part of the file than the one asked for")
            _copy(response, growing.part, name)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # the file is shorter than what is there
            growing.forget()
        answer = f"the server answers {error.code} {error.reason}"
        if error.code >= 500 or error.code in (408, 416, 429):
            raise _TransientError(answer) from None
        raise SourceError(f"{uri}: cannot fetch {_shown(url)}: {answer}") from None
    except urllib.error.URLError as error:
        cause = error.reason
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise SourceError(f"{uri}: cannot fetch {_shown(url)}: {cause.verify_message or cause}") from None
        raise _TransientError(reason(cause) if isinstance(cause, OSError) else str(cause)) from None
    except (TimeoutError, ConnectionError, http.client.HTTPException) as error:
        raise _TransientError(reason(error)) from None


def _copy(response: Any, part: Path, name: str) -> None:
    before = part.stat().st_size if part.is_file() else 0
    promised = response.headers.get("Content-Length")
    total = before + int(promised) if promised and promised.isdigit() else None
    found = before
    with part.open("ab") as file, Progress(name, total, done=before) as progress:
        while chunk := response.read(CHUNK):
            file.write(chunk)
            found += len(chunk)
            progress.add(len(chunk))
    # With reads in pieces, a broken connection looks like the end of the file.
    if total is not None and found != total:
        raise _TransientError(f"the connection ended after {found:,} of {total:,} bytes")


def _shown(url: str) -> str:
    """A URL as messages show it: without the query, where signed URLs carry their signature."""
    return urlunsplit(urlsplit(url)._replace(query="", fragment=""))
