"""Signs and verifies the manifests under a root with OpenSSF model-signing: offline, with a key.

model-signing hashes the folder that it is given, and that is a folder of the manifests alone: a signature then covers
gigabytes of weights by the hashes in their manifests, and is checked in milliseconds. `prebake.baked.signature` reads
what is written here.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prebake.baked import layout
from prebake.baked.model import BakedModel, refuse_image_layout
from prebake.baked.signature import Signature, differences, is_valid, not_of_key
from prebake.documents.messages import reason
from prebake.errors import ConfigError, IntegrityError
from prebake_build.files.atomic import sync_folder
from prebake_build.files.digest import unwritten

_SUBJECT = "models"
"""Name of what is signed, in the statement."""


def models_to_sign(root: Path) -> list[BakedModel]:
    """Every model under a root. Raises ConfigError for one model's own folder, or a folder without models.

    Unlike `find_models` it does not ask for a signature: this is where it is made and checked.
    """
    if (root / layout.MANIFEST).exists():
        raise ConfigError(f"{root}: is one model: name the folder around it, whose models are signed together")
    if not root.is_dir():
        raise ConfigError(f"{root}: there is no such folder (expected a root of baked models)")
    refuse_image_layout(root)
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise ConfigError(f"{root}: holds no baked model (run: prebake bake --output {root})")
    return [BakedModel.open(folder) for folder in folders]


def sign(root: Path, models: Sequence[BakedModel], key: Path, password: str | None) -> Path:
    """Sign the manifests of all models under a root with an elliptic-curve private key (PEM); returns the file.

    Raises ConfigError if model-signing is not installed or the key can't be used, or the file can't be written.
    """
    signing, _ = _library()
    with _manifests(models) as (folder, scratch):
        try:
            config = signing.Config().use_elliptic_key_signer(private_key=key, password=_bytes(password))
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(
                f"{key}: cannot be used to sign: {reason(error)} (expected an elliptic-curve private key in PEM form: "
                "openssl ecparam -name prime256v1 -genkey -noout -out key.pem)"
            ) from error
        config.sign(folder, scratch / layout.SIGNATURE)
        path = root / layout.SIGNATURE
        work = path.with_name(f".{path.name}.tmp")
        try:
            shutil.copyfile(scratch / layout.SIGNATURE, work)
            work.chmod(0o644)
            work.replace(path)
            sync_folder(root)
        except OSError as error:
            raise unwritten(path, error) from error
        finally:
            work.unlink(missing_ok=True)
    return path


def verify(root: Path, models: Sequence[BakedModel], key: Path) -> None:
    """Check the signature of all models under a root with the public key (PEM).

    Raises ConfigError if model-signing is not installed or the key can't be used, DocumentError if the signature is
    malformed, and IntegrityError that lists everything that does not fit.
    """
    _, verifying = _library()
    path = root / layout.SIGNATURE
    signature = Signature.read(path)
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=key)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{key}: cannot be used to verify: {reason(error)} (expected a public key in PEM form: "
            "openssl ec -in key.pem -pubout -out key.pub)"
        ) from error
    with _manifests(models) as (folder, _):
        try:
            config.verify(folder, path)
        except Exception as error:  # model-signing raises whatever its parsers raise
            findings = differences(signature, root, [baked.name for baked in models])
            if not is_valid(signature, key):
                raise IntegrityError(not_of_key(path, key)) from error
            raise IntegrityError(
                f"{path}: does not fit the models:\n  " + "\n  ".join(findings or [reason(error).strip()])
            ) from error


def _library() -> tuple[Any, Any]:
    try:
        from model_signing import signing, verifying
    except ImportError as error:
        raise ConfigError(
            f"signatures need model-signing ({error.name} is missing): pip install 'prebake-build[trust]'"
        ) from error
    return signing, verifying


@contextmanager
def _manifests(models: Sequence[BakedModel]) -> Iterator[tuple[Path, Path]]:
    """A folder with the manifests alone, and the folder around it."""
    with tempfile.TemporaryDirectory(prefix="prebake-") as scratch:
        folder = Path(scratch) / _SUBJECT
        for baked in models:
            (folder / baked.name).mkdir(parents=True)
            shutil.copyfile(baked.folder / layout.MANIFEST, folder / baked.name / layout.MANIFEST)
        yield folder, Path(scratch)


def _bytes(password: str | None) -> Any:
    # its annotation says str, but cryptography takes bytes
    return password.encode() if password else None
