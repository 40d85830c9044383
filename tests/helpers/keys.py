"""Elliptic-curve keys in PEM files."""

from __future__ import annotations

from pathlib import Path

import pytest


def key_pair(
    folder: Path, name: str = "key", curve: str = "SECP256R1", password: str | None = None
) -> tuple[Path, Path]:
    """A private and a public key. Skips the test where `cryptography` is not installed."""
    pytest.importorskip("cryptography", reason="signatures need cryptography: pip install 'prebake[verify]'")
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric import ec

    private = ec.generate_private_key(getattr(ec, curve)())
    encryption = s.BestAvailableEncryption(password.encode()) if password else s.NoEncryption()
    paths = folder / f"{name}.pem", folder / f"{name}.pub"
    paths[0].write_bytes(private.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, encryption))
    paths[1].write_bytes(private.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo))
    return paths
