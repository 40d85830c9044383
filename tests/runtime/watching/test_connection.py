"""A service that speaks HTTPS is asked over HTTPS, if its certificate is trusted."""

from __future__ import annotations

import datetime
import ipaddress
import os
import ssl
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from prebake.errors import ConfigError
from prebake.watching.process import WatchedProcess
from prebake.watching.questions import parse_question
from prebake.watching.readiness import AtUrl, Told, wait


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate of 127.0.0.1 that it has signed itself, with its key, in one file."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "service")])
    now = datetime.datetime.now(datetime.timezone.utc)
    alternative = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1)).add_extension(alternative, critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "service.pem").write_bytes(made.public_bytes(pem) + private)
    return tmp_path / "service.pem"


@pytest.fixture
def url(certificate: Path) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"up")

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that refuses the certificate
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"https://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_readiness_and_requests_use_https(url: str, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with WatchedProcess(["sleep", "600"], os.environ) as service:
        told = wait(service, AtUrl(f"{url}/up"), 60).told
    assert told == Told(how="GET /up answered 200", url=url)
    assert parse_question("/x", "here").ask(url, 60).body == b"up"


def test_a_certificate_that_is_not_trusted_is_told_at_once(url: str) -> None:
    with pytest.raises(ConfigError) as caught, WatchedProcess(["sleep", "600"], os.environ) as service:
        wait(service, AtUrl(f"{url}/up"), 60)
    assert str(caught.value).replace("self signed", "self-signed") == (  # before OpenSSL 3
        f"{url}: its certificate is not trusted here (self-signed certificate): set SSL_CERT_FILE to a file with it, "
        "or with that of its authority"
    )
