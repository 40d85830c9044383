"""Rules about weights: stored twice, compressed, beside code, in a download cache, or deleted too late."""

from __future__ import annotations

import posixpath
from collections import defaultdict
from collections.abc import Iterator

from prebake_build.images.checks.data import matches
from prebake_build.images.checks.findings import Finding, Subject, by_layer, is_weights, paths, total
from prebake_build.images.contents import Entry


def duplicate_formats(subject: Subject) -> Iterator[Finding]:
    """Two formats of one checkpoint in a folder; links count as the file that they lead to."""
    folders: dict[str, dict[str, list[Entry]]] = defaultdict(lambda: defaultdict(list))
    for path in subject.contents.files:
        format_ = subject.rules.formats.get(posixpath.splitext(path)[1])
        target = subject.contents.resolve(path) if format_ else None
        if format_ and target is not None and target.digest:
            folders[posixpath.dirname(path)][format_].append(target)
    for folder, formats in sorted(folders.items()):
        if "safetensors" not in formats:
            continue
        for format_, entries in sorted(formats.items()):
            if format_ in ("safetensors", "ONNX"):  # ONNX beside safetensors may be what runs
                continue
            for layer, files in by_layer(entries).items():
                yield Finding(
                    rule="duplicate-weights", layer=layer, bytes=total(files), paths=paths(files),
                    message=f"/{folder} holds the model as {format_} beside safetensors",
                    mend='download one format (allow_patterns=["*.safetensors", "*.json", "*.txt"]), or bake the '
                    "model: prebake bake",
                )  # fmt: skip


def duplicate_blobs(subject: Subject) -> Iterator[Finding]:
    """The same bytes at two places or in two layers, both of which are stored and pulled."""
    copies: dict[str, list[Entry]] = defaultdict(list)
    for entries in subject.contents.layers:
        for entry in entries:
            if entry.path in subject.weights or is_weights(entry, subject.rules):
                copies[entry.digest].append(entry)
    for digest, found in sorted(copies.items()):
        if digest and len(found) > 1:
            first, *others = found
            for layer, files in by_layer(others).items():
                yield Finding(
                    rule="duplicate-weights", layer=layer, bytes=total(files), paths=(*paths([first]), *paths(files)),
                    message=f"the same weights are stored again (first in layer {first.layer})",
                    mend="copy them once, with COPY --chown or --chmod in place of a later chown or chmod, and link "
                    "further names to them (ln -s)",
                )  # fmt: skip


def deleted(subject: Subject) -> Iterator[Finding]:
    """Weights that a later layer deletes or replaces: a pull moves them all the same."""
    gone = [(entry, by) for entry, by in subject.contents.removed if is_weights(entry, subject.rules)]
    gone = [(entry, by) for entry, by in gone if not _is_copy(subject, entry)]
    for layer, files in by_layer(entry for entry, _ in gone).items():
        later = sorted({by for entry, by in gone if entry.layer == layer})
        yield Finding(
            rule="deleted-weights", layer=layer, bytes=total(files), paths=paths(files),
            message=f"layer {', '.join(map(str, later))} deletes or replaces them, but they stay in the image",
            mend="delete them in the instruction that made them, or make them in a stage of their own and COPY "
            "the result",
        )  # fmt: skip


def _is_copy(subject: Subject, entry: Entry) -> bool:
    """Whether the same bytes lie over it, which `duplicate_blobs` tells."""
    now = subject.contents.files.get(entry.path)
    return now is not None and now.digest == entry.digest


def compressed(subject: Subject) -> Iterator[Finding]:
    """Weights in a gzip layer. zstd is no finding: it unpacks faster than most links deliver."""
    for layer, files in by_layer(subject.weights.values()).items():
        if subject.image.manifest.layers[layer].media_type.endswith("gzip"):
            yield Finding(
                rule="compressed-weights", layer=layer, bytes=total(files), paths=paths(files),
                message="weights in a layer compressed with gzip: it saves some 7 % of them and takes most of the pull",
                mend="build with --output type=registry,compression=uncompressed,force-compression=true,"
                "oci-mediatypes=true (or compression=zstd)",
            )  # fmt: skip


def mixed(subject: Subject) -> Iterator[Finding]:
    """A layer with both weights and code: a changed line of code moves the weights again."""
    for layer, files in by_layer(subject.weights.values()).items():
        code = [
            entry
            for entry in subject.contents.layers[layer]
            if entry.kind == "file" and posixpath.splitext(entry.path)[1] in subject.rules.code_suffixes
        ]
        if total(files) >= subject.rules.mixed and len(code) >= subject.rules.code_least:
            yield Finding(
                rule="mixed-layer", layer=layer, bytes=total(files), paths=(*paths(files), *paths(code[:1])),
                message=f"weights and {len(code):,} files of code in one layer: each change of the code moves "
                "the weights again",
                mend="put the weights into a layer of their own: COPY --link --from=weights /models /models",
            )  # fmt: skip


def in_a_cache(subject: Subject) -> Iterator[Finding]:
    """Weights in a download cache: the habit of `RUN python -c "….from_pretrained(…)"`."""
    found = [entry for entry in subject.weights.values() if matches(entry.path, subject.rules.caches)]
    for layer, files in by_layer(found).items():
        yield Finding(
            rule="download-cache", layer=layer, bytes=total(files), paths=paths(files),
            message="weights were downloaded into a cache during the build: no lock says which, and another user or "
            "HOME does not find them",
            mend="declare the model in models.toml and bake it (prebake lock, prebake bake --oci), or download it to "
            "a folder of your choice with a pinned revision",
        )  # fmt: skip
