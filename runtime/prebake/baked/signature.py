"""The signature of the models under a root: `prebake.sig`, a Sigstore bundle as OpenSSF model-signing writes it.

What is signed are the manifests, each by its sha256. A manifest has the hashes of its model's files, so a start checks
the signature and the files' sizes and hashes no gigabytes. `prebake sign` writes the file with model-signing, and
`prebake verify --key` checks it with that. This module checks the same with `cryptography` alone, because importing
model-signing takes more than a second.

Formats: https://github.com/sigstore/model-transparency (statement), https://github.com/secure-systems-lab/dsse
(envelope), https://github.com/sigstore/protobuf-specs (bundle).
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prebake.baked import layout
from prebake.documents.messages import quote, reason
from prebake.documents.table import Table
from prebake.errors import ConfigError, DocumentError, IntegrityError

PAYLOAD_TYPE = "application/vnd.in-toto+json"
PREDICATE = "https://model_signing/signature/v1.0"
_LARGEST = 64 << 20
_HASHES = {256: "SHA256", 384: "SHA384", 521: "SHA512"}
"""Bits of the key's curve → hash of its signatures."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Signature:
    """A signature file, read and not yet checked."""

    payload: bytes
    """The signed statement."""
    signature: bytes
    manifests: dict[str, str]
    """`NAME/manifest.json` → its sha256, as the statement says."""

    @classmethod
    def read(cls, path: Path) -> Signature:
        """Raises IntegrityError if there is none, and DocumentError if it is malformed."""
        table = _json(path)
        envelope = table.table("dsseEnvelope")
        if (kind := envelope.take("payloadType", str)) != PAYLOAD_TYPE:
            raise envelope.fail("payloadType", f"{quote(kind)} is not {PAYLOAD_TYPE}")
        payload = _base64(envelope, "payload")
        signatures = envelope.items("signatures", lambda signature: _base64(signature, "sig"))
        if len(signatures) != 1:
            raise envelope.fail("signatures", f"expected one, found {len(signatures)}")
        return cls(payload=payload, signature=signatures[0], manifests=_manifests(payload, path))


def check_signature(root: Path, key: Path, names: Sequence[str], *, all_of_them: bool = True) -> None:
    """Check that these models' manifests are those that were signed with the private key of `key` (a PEM file).

    With `all_of_them`, the signature must be of these models and no others. Raises ConfigError if the key can't be
    used, DocumentError if the signature is malformed, and IntegrityError that lists everything that does not fit.
    """
    signature = Signature.read(root / layout.SIGNATURE)
    if not is_valid(signature, key):
        raise IntegrityError(not_of_key(root / layout.SIGNATURE, key))
    if findings := differences(signature, root, names, all_of_them=all_of_them):
        raise IntegrityError(
            f"{root}: the signature does not fit the models:\n  " + "\n  ".join(findings)
            + "\nPull these models again, or sign what is there: prebake sign."
        )  # fmt: skip


def differences(signature: Signature, root: Path, names: Sequence[str], *, all_of_them: bool = True) -> list[str]:
    """How the manifests of these models differ from those that were signed, one line each."""
    findings = []
    expected = dict(signature.manifests)
    for name in names:
        path = f"{name}/{layout.MANIFEST}"
        signed = expected.pop(path, None)
        if signed is None:
            findings.append(f"{path}: was not signed")
        elif (found := _sha256(root / path)) != signed:
            findings.append(f"{path}: signed with sha256 {signed}, found {found}")
    return findings + [f"{path}: was signed, but is not there" for path in sorted(expected) if all_of_them]


def not_of_key(path: Path, key: Path) -> str:
    """The message about a signature that a key does not verify."""
    return (
        f"{path}: was not made with the private key of {key}, or was changed afterwards: "
        "name the key that signed these models, or pull them again"
    )


def is_valid(signature: Signature, key: Path) -> bool:
    """Whether the private key of `key` made it. Raises ConfigError if the key can't be used."""
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ImportError as error:
        raise ConfigError(
            f"{layout.ENV_VERIFY_KEY}: checking a signature needs the package cryptography (pip install "
            "'prebake[verify]')"
        ) from error
    try:
        public = load_pem_public_key(key.read_bytes())
    except OSError as error:
        raise ConfigError(f"{key}: cannot read this key: {reason(error)}") from error
    except ValueError as error:
        raise ConfigError(f"{key}: is not a public key in PEM form (-----BEGIN PUBLIC KEY-----)") from error
    if not isinstance(public, ec.EllipticCurvePublicKey) or public.curve.key_size not in _HASHES:
        raise ConfigError(f"{key}: expected an elliptic-curve key (P-256, P-384 or P-521)")
    algorithm = getattr(hashes, _HASHES[public.curve.key_size])()
    kind = PAYLOAD_TYPE.encode()
    message = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(signature.payload), signature.payload)
    try:
        public.verify(signature.signature, message, ec.ECDSA(algorithm))
    except InvalidSignature:
        return False
    return True


def _manifests(payload: bytes, path: Path) -> dict[str, str]:
    try:
        document = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"{path}: what was signed is not JSON: {error}") from error
    statement = Table(document, f"{path}: statement")
    if (kind := statement.take("predicateType", str)) != PREDICATE:
        raise statement.fail("predicateType", f"{quote(kind)} is not {PREDICATE}")
    found: dict[str, str] = {}
    for name, digest in statement.table("predicate").items("resources", _resource):
        found[name] = digest
    return found


def _resource(table: Table) -> tuple[str, str]:
    name, algorithm = table.take("name", str), table.take("algorithm", str)
    if algorithm != "sha256":
        raise table.fail("algorithm", f"{quote(algorithm)} is not sha256")
    return name, table.take("digest", str)


def _json(path: Path) -> Table:
    try:
        if path.stat().st_size > _LARGEST:
            raise DocumentError(f"{path}: is too large for a signature")
        document: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise IntegrityError(f"{path}: there is no such file: the models are not signed (prebake sign)") from None
    except OSError as error:
        raise DocumentError(f"{path}: cannot read this signature: {reason(error)}") from error
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"{path}: this signature is not JSON: {error}") from error
    return Table(document, str(path))


def _base64(table: Table, key: str) -> bytes:
    try:
        return base64.b64decode(table.take(key, str), validate=True)
    except ValueError as error:
        raise table.fail(key, f"is not base64: {error}") from error


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        return f"none ({reason(error)})"
