"""Where a report goes: a file, a Unix socket, or a port of this machine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from prebake.documents.messages import quote
from prebake.errors import ConfigError

_HOSTS = ("127.0.0.1", "localhost")
_LONGEST_SOCKET = 100
"""Bytes of a Unix socket's path; Linux allows 107."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Address:
    """One of the three; the others are None."""

    file: str | None = None
    socket: str | None = None
    port: int | None = None
    host: str = "127.0.0.1"

    @classmethod
    def parse(cls, text: str, where: str) -> Address:
        """Read a file's path, `unix:PATH`, or `127.0.0.1:PORT`. Raises ConfigError that begins with `where`."""
        if text.startswith("unix:"):
            path = text.removeprefix("unix:")
            if not path or len(path.encode()) > _LONGEST_SOCKET:
                raise ConfigError(
                    f"{where}: {quote(text)}: expected a path of 1 to {_LONGEST_SOCKET} bytes after unix:"
                )
            return cls(socket=path)
        host, colon, port = text.rpartition(":")
        if not colon or "/" in text or not port.isdigit():
            if not text or text.endswith("/"):
                raise ConfigError(f"{where}: {quote(text)}: expected a file, unix:PATH, or 127.0.0.1:PORT")
            return cls(file=text)
        if host not in _HOSTS:
            raise ConfigError(
                f"{where}: {quote(text)}: a report is for this machine alone: expected 127.0.0.1:{port} (for others, "
                "prebake.middleware answers in the application)"
            )
        if not 0 < int(port) < 65536:
            raise ConfigError(f"{where}: {quote(text)}: {port} is not a port (1 to 65535)")
        return cls(port=int(port))

    def absolute(self) -> Address:
        """The same place, named from any folder. The path of a socket may be too long then."""
        if self.file is not None:
            return replace(self, file=str(Path(self.file).absolute()))
        return self if self.socket is None else replace(self, socket=str(Path(self.socket).absolute()))

    def __str__(self) -> str:
        if self.file is not None:
            return self.file
        return f"unix:{self.socket}" if self.port is None else f"{self.host}:{self.port}"
