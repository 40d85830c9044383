"""Zips and tars in memory, good ones and such as nobody should unpack."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable

GOOD = {"config.json": b"{}", "sub/weights.bin": b"w" * 1000}
"""Members of an archive that is fine."""


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
