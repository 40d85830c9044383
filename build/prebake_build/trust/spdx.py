"""What an image holds, for BuildKit: a generator of bills of materials as `docker buildx bake release` runs it.

BuildKit attaches SPDX, so this writes SPDX 2.3: the baked models with their files and checkpoints, from their
manifests, and the Python packages. `prebake sbom` writes CycloneDX, which has words for models. It runs in an image of
its own (`sbom-generator` in workspace.Dockerfile), without the libraries of `prebake-build[trust]`.

Protocol: https://github.com/moby/buildkit/blob/master/docs/attestations/sbom-protocol.md
Specification: https://spdx.github.io/spdx-spec/v2.3/
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

from prebake.baked import layout
from prebake.baked.manifest import Manifest, Source
from prebake.documents.messages import quote
from prebake.errors import ConfigError, PrebakeError

PREDICATE = "https://spdx.dev/Document"
SOURCE, DESTINATION = "BUILDKIT_SCAN_SOURCE", "BUILDKIT_SCAN_DESTINATION"
EPOCH = "SOURCE_DATE_EPOCH"
_UNKNOWN = "NOASSERTION"
_PACKAGES = ("opt/*/lib/python3*/site-packages", "usr/lib/python3/dist-packages",
             "usr/lib/python3*/site-packages", "usr/local/lib/python3*/site-packages")  # fmt: skip


def source_time(environment: Mapping[str, str]) -> datetime:
    """The time of SOURCE_DATE_EPOCH (1970 if it is not set), which documents have in place of the current one.

    Raises ConfigError. Specification: https://reproducible-builds.org/specs/source-date-epoch/
    """
    text = environment.get(EPOCH) or "0"
    try:
        return datetime.fromtimestamp(int(text), timezone.utc)
    except (ValueError, OverflowError, OSError):
        raise ConfigError(f"{EPOCH}: {quote(text)} is not a time in seconds since 1970") from None


def on_hub(source: Source) -> tuple[str, str] | None:
    """Repository (`owner/name`) and commit of a checkpoint from the hub; None for any other."""
    repository, _, _ = source.uri.removeprefix("hf:").partition("@")
    if not source.uri.startswith("hf:") or repository.count("/") != 1:
        return None
    return repository, source.revision.removeprefix("commit:")


def document(manifests: Sequence[Manifest], packages: Iterable[Distribution], *, created: datetime) -> dict[str, Any]:
    """The SPDX document of these models and packages."""
    found: list[dict[str, Any]] = []
    relations: list[tuple[str, str, str]] = []
    licences: dict[str, str] = {}
    for manifest in sorted(manifests, key=lambda manifest: manifest.name):
        found += _of_model(manifest, relations, licences)
    versions = {(package.name, package.version): package for package in packages}
    for (name, version), package in sorted(versions.items()):
        licence = next(iter(package.metadata.get_all("License-Expression") or ()), None)
        purl = f"pkg:pypi/{_normal(name)}@{version}"
        found.append(_package(name, version, purl=purl, licence=_licence(licence, licences)))
        relations.append(("SPDXRef-DOCUMENT", "DESCRIBES", found[-1]["SPDXID"]))
    digest = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
    texts = [{"licenseId": key, "name": name, "extractedText": f"The source says: {name}"}
             for key, name in sorted(licences.items())]  # fmt: skip
    return {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": "baked models and Python packages",
        "documentNamespace": f"https://spdx.org/spdxdocs/prebake-{digest}",
        "creationInfo": {
            "created": created.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "creators": ["Tool: prebake-build"],
        },
        "packages": found,
        "relationships": [
            {"spdxElementId": one, "relationshipType": kind, "relatedSpdxElement": other}
            for one, kind, other in relations
        ],
        **({"hasExtractedLicensingInfos": texts} if texts else {}),
    }


def _of_model(
    manifest: Manifest, relations: list[tuple[str, str, str]], licences: dict[str, str]
) -> list[dict[str, Any]]:
    source = manifest.source
    licence = _licence(source.licence, licences)
    purl = "pkg:huggingface/{}@{}".format(*place) if (place := on_hub(source)) else None
    comment = f"{manifest.family}:{manifest.class_}, {manifest.weights.bytes:,} bytes of weights"
    model = _package(manifest.name, manifest.set_digest, licence=licence, comment=comment)
    checkpoint = _package(f"{manifest.name} checkpoint {source.uri}", source.revision, purl=purl, licence=licence)
    relations += [("SPDXRef-DOCUMENT", "DESCRIBES", model["SPDXID"]),
                  (model["SPDXID"], "GENERATED_FROM", checkpoint["SPDXID"])]  # fmt: skip
    files = []
    for file in manifest.files:
        entry = _package(f"{manifest.name}/{file.path}", None, licence=licence)
        entry |= {"primaryPackagePurpose": "FILE",
                  "checksums": [{"algorithm": "SHA256", "checksumValue": file.sha256}]}  # fmt: skip
        relations.append((model["SPDXID"], "CONTAINS", entry["SPDXID"]))
        files.append(entry)
    return [model, checkpoint, *files]


def _package(
    name: str, version: str | None, *, licence: str = _UNKNOWN, purl: str | None = None, comment: str | None = None
) -> dict[str, Any]:
    identity = hashlib.sha256(f"{name} {version}".encode()).hexdigest()[:16]
    package: dict[str, Any] = {
        "SPDXID": f"SPDXRef-{identity}", "name": name, "downloadLocation": _UNKNOWN, "filesAnalyzed": False,
        "licenseConcluded": _UNKNOWN, "licenseDeclared": licence, "copyrightText": _UNKNOWN,
    }  # fmt: skip
    if version is not None:
        package["versionInfo"] = version
    if comment is not None:
        package["comment"] = comment
    if purl is not None:
        package["externalRefs"] = [
            {"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": purl}
        ]
    return package


def _licence(name: str | None, licences: dict[str, str]) -> str:
    """The licence as SPDX spells it. One that it does not know is added to `licences`, by an identifier of its own."""
    from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

    if not name:
        return _UNKNOWN
    try:
        return str(canonicalize_license_expression(name))  # the hub writes identifiers in lower case: apache-2.0
    except InvalidLicenseExpression:
        identity = "LicenseRef-" + re.sub(r"[^A-Za-z0-9.]+", "-", name)
        licences[identity] = name
        return identity


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def manifests_in(root: Path) -> list[Manifest]:
    """The manifests of the models in an image's file system. Raises DocumentError for one that can't be read."""
    models = root / layout.DEFAULT_ROOT.strip("/")
    return [Manifest.read(path.parent) for path in sorted(models.glob(f"[!.]*/{layout.MANIFEST}"))]


def packages_in(root: Path) -> list[Distribution]:
    """The Python packages in an image's file system."""
    folders = [str(folder) for pattern in _PACKAGES for folder in sorted(root.glob(pattern))]
    return [found for found in distributions(path=folders) if found.metadata["Name"]]


def main(environment: Mapping[str, str]) -> int:
    """Scan as BuildKit asks; returns the exit code."""
    try:
        root, folder = Path(environment[SOURCE]), Path(environment[DESTINATION])
        predicate = document(manifests_in(root), packages_in(root),
                             created=source_time(environment))  # fmt: skip
    except KeyError as error:
        print(f"prebake: error: {error.args[0]} is not set: BuildKit sets it", file=sys.stderr)
        return 2
    except PrebakeError as error:
        print(f"prebake: error: {error}", file=sys.stderr)
        return error.exit_code
    statement = {"_type": "https://in-toto.io/Statement/v0.1", "predicateType": PREDICATE, "predicate": predicate}
    (folder / f"{root.name}.spdx.json").write_text(json.dumps(statement), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(os.environ))
