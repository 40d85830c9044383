"""Connections to a watched service, by its address `http://HOST:PORT` or `https://HOST:PORT`."""

from __future__ import annotations

import http.client
import ssl
from urllib.parse import urlsplit


def connect(address: str, timeout: float) -> http.client.HTTPConnection:
    """A connection that is opened with the first request; a certificate must be trusted here (`SSL_CERT_FILE`)."""
    parts = urlsplit(address)
    if parts.scheme == "https":
        context = ssl.create_default_context()
        return http.client.HTTPSConnection(parts.netloc, timeout=timeout, context=context)
    return http.client.HTTPConnection(parts.netloc, timeout=timeout)
