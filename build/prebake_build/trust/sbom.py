"""A CycloneDX bill of materials (ML-BOM) of baked models: licence, source, hashes, lineage, and what converted them.

Written with cyclonedx-python-lib. It has no model cards yet (11.12), so these are added to its JSON, and the result is
validated against the schema that it ships. The same models give the same document: its serial number comes from their
digests, its time from SOURCE_DATE_EPOCH.

Specification: https://cyclonedx.org/docs/1.6/json/
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from prebake.baked.manifest import Manifest, Source
from prebake.errors import ConfigError, PrebakeError
from prebake_build.trust.spdx import on_hub, source_time

if TYPE_CHECKING:
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component

_NAMESPACE = uuid.UUID("5f0c7a52-4d3e-5a55-9a43-0b5a0d4c8f11")
"""Of serial numbers; a random value that stays."""


def bill_of_materials(manifests: Sequence[Manifest]) -> str:
    """The models' bill of materials as CycloneDX 1.6 JSON.

    Raises ConfigError if the library is not installed, and PrebakeError if the document is not valid.
    """
    try:
        from cyclonedx.output import make_outputter
        from cyclonedx.schema import OutputFormat, SchemaVersion
        from cyclonedx.validation.json import JsonStrictValidator
    except ImportError as error:
        raise ConfigError(
            f"the bill of materials needs cyclonedx-python-lib ({error.name} is missing): "
            "pip install 'prebake-build[trust]'"
        ) from error
    manifests = sorted(manifests, key=lambda manifest: manifest.name)
    outputter = make_outputter(_bom(manifests), OutputFormat.JSON, SchemaVersion.V1_6)
    document: dict[str, Any] = json.loads(outputter.output_as_string())
    for component in document["components"]:
        manifest = next(m for m in manifests if m.name == component["name"])
        component["modelCard"] = _model_card(manifest)
    text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    if found := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        raise PrebakeError(f"the bill of materials is not valid CycloneDX: {found}")
    return text


def _bom(manifests: Sequence[Manifest]) -> Bom:
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType

    bom = Bom(
        serial_number=uuid.uuid5(_NAMESPACE, " ".join(manifest.text for manifest in manifests)),
        components=[_component(manifest) for manifest in manifests],
    )
    bom.metadata.timestamp = source_time(os.environ)
    bom.metadata.tools.components.add(
        Component(name="prebake-build", type=ComponentType.APPLICATION, version=version("prebake-build"))
    )
    for component in bom.components:
        bom.register_dependency(component)
    return bom


def _component(manifest: Manifest) -> Component:
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.component import Component, ComponentType, Pedigree

    return Component(
        name=manifest.name,
        bom_ref=f"model:{manifest.name}",
        type=ComponentType.MACHINE_LEARNING_MODEL,
        version=manifest.set_digest,
        licenses=_licences(manifest.source),
        pedigree=Pedigree(ancestors=[_checkpoint(manifest)], notes=_lineage(manifest)),
        properties=[Property(name=f"prebake:{name}", value=value) for name, value in _properties(manifest).items()],
        components=[
            Component(
                name=file.path,
                bom_ref=f"model:{manifest.name}/{file.path}",
                type=ComponentType.FILE,
                hashes=[HashType(alg=HashAlgorithm.SHA_256, content=file.sha256)],
                properties=[Property(name="prebake:bytes", value=str(file.size))],
            )
            for file in manifest.files
        ],
    )


def _checkpoint(manifest: Manifest) -> Component:
    """What upstream publishes, which the model was converted from."""
    from cyclonedx.model import ExternalReference, ExternalReferenceType, XsUri
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    source = manifest.source
    place = on_hub(source)
    repository, commit = place or ("", "")
    owner, _, name = repository.partition("/")
    return Component(
        name=source.uri,
        bom_ref=f"checkpoint:{manifest.name}",
        type=ComponentType.MACHINE_LEARNING_MODEL,
        version=source.revision,
        licenses=_licences(source),
        purl=PackageURL("huggingface", owner, name, commit) if place else None,
        external_references=[
            ExternalReference(
                type=ExternalReferenceType.MODEL_CARD,
                url=XsUri(f"https://huggingface.co/{repository}/blob/{commit}/README.md"),
            )
        ] if place else None,
    )  # fmt: skip


def _licences(source: Source) -> list[Any]:
    from cyclonedx.model.license import DisjunctiveLicense
    from cyclonedx.spdx import fixup_id

    if not source.licence:
        return []
    # the hub writes identifiers in lower case: apache-2.0
    known = fixup_id(source.licence)
    return [DisjunctiveLicense(id=known) if known else DisjunctiveLicense(name=source.licence)]


def _lineage(manifest: Manifest) -> str:
    converter = ", ".join(f"{package} {value}" for package, value in sorted(manifest.converter.items()))
    return f"Converted to safetensors, bit by bit, and proven: {converter}"


def _properties(manifest: Manifest) -> dict[str, str]:
    weights = manifest.weights
    return {
        "set-digest": manifest.set_digest,
        "class": f"{manifest.family}:{manifest.class_}",
        "tensors": str(weights.tensors),
        "weights-bytes": str(weights.bytes),
        "dtypes": " ".join(f"{name}:{count}" for name, count in sorted(weights.dtypes.items())),
        **{f"requires:{package}": value for package, value in sorted(manifest.requires.items())},
    }


def _model_card(manifest: Manifest) -> Mapping[str, Any]:
    return {
        "modelParameters": {"architectureFamily": manifest.family, "modelArchitecture": manifest.class_},
        "properties": [{"name": f"prebake:option:{name}", "value": json.dumps(value, sort_keys=True)}
                       for name, value in sorted(manifest.options.items())],
    }  # fmt: skip
