"""Layouts, layers and signatures come from anywhere: whatever is in them, the answer is a PrebakeError or a result."""

from __future__ import annotations

import base64
import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.baked_folders import baked_folder
from helpers.oci_images import LayerOf, Node, write_image
from prebake.baked.signature import Signature
from prebake.documents.table import Table
from prebake.errors import PrebakeError
from prebake_build.images.checks.check import check
from prebake_build.images.documents import Config, Index, Manifest
from prebake_build.images.models import models_in_image
from prebake_build.images.oci_layout import Layout
from prebake_build.images.verification import ImageModels

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = (
    "schemaVersion", "mediaType", "config", "layers", "manifests", "annotations", "digest", "size", "platform", "os",
    "architecture", "rootfs", "diff_ids", "history", "created_by", "empty_layer", "Env", "User", "Cmd", "Labels",
)  # fmt: skip
DOCUMENT = st.dictionaries(st.sampled_from(KEYS), JSON | st.dictionaries(st.sampled_from(KEYS), JSON), max_size=6)


@given(DOCUMENT, st.sampled_from([Index, Manifest, Config]))
def test_any_document_is_read_or_refused(document: dict[str, Any], kind: Any) -> None:
    with contextlib.suppress(PrebakeError):
        kind.from_table(Table(document, "document"))


@given(st.dictionaries(st.sampled_from(["dsseEnvelope", "mediaType"]), JSON), JSON)
def test_any_signature_is_read_or_refused(outer: dict[str, Any], statement: Any) -> None:
    payload = base64.b64encode(json.dumps(statement).encode()).decode()
    envelope = {"payloadType": "application/vnd.in-toto+json", "payload": payload, "signatures": [{"sig": "AA=="}]}
    for document in (outer, {"dsseEnvelope": envelope}):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "prebake.sig"
            path.write_text(json.dumps(document))
            with contextlib.suppress(PrebakeError):
                Signature.read(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.data())
def test_a_layer_with_flipped_bytes_is_checked_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        manifest = baked_folder(Path(folder) / "models", "m").manifest.text.encode()
        files: dict[str, bytes | Node] = {
            "models/m/manifest.json": manifest, "a/b": b"x" * 600, "etc/passwd": b"root:x:0:0::/:\n",
            "link": Node(target="a/b"), "a/.wh.b": b"", "hard": Node(target="a/b", hard=True),
        }  # fmt: skip
        oci = write_image(Path(folder) / "oci", LayerOf(files, gzip=data.draw(st.booleans())))
        image = Layout.open(oci).image(wanted="linux/amd64")
        layer = image.layer(0)
        raw = bytearray(layer.read_bytes())
        for place in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=8)):
            raw[place] = data.draw(st.integers(0, 255))
        layer.write_bytes(raw)
        with contextlib.suppress(PrebakeError):
            check(image)
        with contextlib.suppress(PrebakeError):
            found = ImageModels.read(image, "oci", hashes=True)
            for model in found.models.values():
                found.findings(model)


@pytest.mark.parametrize("target", ["../../../../etc/passwd", "/etc/passwd", "."])
def test_links_out_of_a_layer_read_nothing_of_this_machine(tmp_path: Path, target: str) -> None:
    text = baked_folder(tmp_path / "models", "m").manifest.text.encode()
    files: dict[str, bytes | Node] = {"models/m/manifest.json": text, "models/m/model.safetensors": Node(target=target)}
    oci = write_image(tmp_path / "oci", LayerOf(files))
    model = models_in_image(Layout.open(oci).image(wanted="linux/amd64"), "oci")["m"]
    with pytest.raises(PrebakeError):
        model.tensors()
