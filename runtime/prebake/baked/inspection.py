"""Describes a baked model from its manifest and file headers; imports no framework and reads no weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prebake.baked.header import read_header
from prebake.baked.model import BakedModel
from prebake.documents.columns import columns
from prebake.documents.messages import printable
from prebake.documents.sizes import format_size


def describe(baked: BakedModel, *, tensors: bool = False) -> dict[str, Any]:
    """The model as plain values; `tensors` adds every tensor's dtype, shape and file.

    Raises TensorFileError if a weights file does not match its header.
    """
    manifest, weights = baked.manifest, baked.manifest.weights
    document: dict[str, Any] = {
        "name": manifest.name,
        "folder": str(baked.folder),
        "family": manifest.family,
        "class": manifest.class_,
        "options": dict(manifest.options),
        "source": manifest.source.to_dict(),
        "set_digest": manifest.set_digest,
        "files": len(manifest.files),
        "bytes": sum(file.size for file in manifest.files),
        "weights": weights.to_dict(),
        "converter": dict(manifest.converter),
        "requires": dict(manifest.requires),
    }
    if tensors:
        document["tensors"] = [
            {"name": name, "dtype": entry.dtype, "shape": list(entry.shape), "file": file}
            for file in weights.all_files
            for name, entry in sorted(read_header(baked.folder / file).entries.items())
        ]
    return document


def lines(document: dict[str, Any]) -> str:
    """The description as text."""
    weights, source = document["weights"], document["source"]
    dtypes = ", ".join(f"{count} x {dtype}" for dtype, count in sorted(weights["dtypes"].items()))
    rows = [
        ("model", f"{document['name']} ({document['family']}:{document['class']})"),
        ("source", f"{source['uri']} at {source['revision']}"),
        ("licence", source["licence"] or "not declared"),
        ("weights", f"{weights['bytes']:,} bytes in {weights['tensors']} tensors ({dtypes})"),
        ("tied", f"{len(weights['aliases'])} names share another's tensor" if weights["aliases"] else "none"),
        ("files", f"{document['files']}, {document['bytes']:,} bytes"),
        ("digest", document["set_digest"]),
        ("made by", ", ".join(f"{package} {version}" for package, version in sorted(document["converter"].items()))),
        ("proven with", ", ".join(f"{package} {version}" for package, version in sorted(document["requires"].items()))),
    ]
    text = [f"{name:<12}{value}" for name, value in rows]
    text += [f"  {t['name']}  {t['dtype']} {t['shape']}" for t in document.get("tensors", [])]
    return "\n".join(map(printable, text))


HEADINGS = ("model", "class", "weights", "tensors", "dtypes", "folder", "licence", "source", "revision", "digest")


def table(documents: Sequence[dict[str, Any]]) -> str:
    """Several descriptions, one line each, and their sums. Revision and digest are cut to what tells them apart."""
    rows = [
        (
            document["name"], f"{document['family']}:{document['class']}", format_size(document["weights"]["bytes"]),
            f"{document['weights']['tensors']:,}", " ".join(sorted(document["weights"]["dtypes"])),
            format_size(document["bytes"]), document["source"]["licence"] or "-", document["source"]["uri"],
            _short(document["source"]["revision"]), _short(document["set_digest"]),
        )
        for document in documents
    ]  # fmt: skip
    sums = [(d["weights"]["bytes"], d["weights"]["tensors"], d["bytes"]) for d in documents]
    weights, tensors, size = map(sum, zip(*sums, strict=True))
    total = (f"{len(rows)} models", "", format_size(weights), f"{tensors:,}", "", format_size(size), "", "", "", "")
    return "\n".join(map(printable, columns([HEADINGS, *rows, total], right=(2, 3, 5))))


def _short(digest: str) -> str:
    kind, colon, value = digest.partition(":")
    return f"{kind}{colon}{value[:12]}"
