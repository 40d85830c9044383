"""`prebake verify`: checks baked models, and snapshots, against their manifests."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prebake.baked import layout
from prebake.baked.header import read_header
from prebake.baked.model import BakedModel
from prebake.commands.arguments import HelpFormatter
from prebake.documents.messages import printable, quote, reason
from prebake.errors import ConfigError, PrebakeError
from prebake.families.allowed import allowed_modules, covers
from prebake.snapshot import folder as snapshots
from prebake_build.files.digest import check_files
from prebake_build.images.oci_layout import is_part
from prebake_build.images.opened import opened_image
from prebake_build.images.verification import ImageModels
from prebake_build.trust.signing import models_to_sign, verify

if TYPE_CHECKING:
    from prebake_build.commands import Commands

_EPILOG = """\
example:
  prebake verify models            every file's size and sha256
  prebake verify models --quick    sizes and headers only
  prebake verify models --key key.pub --quick      the signature of the manifests, and the files' sizes
  prebake verify weights --key key.pub             an OCI image layout: its layers, the models' files, the signature
  prebake verify /snapshot         a snapshot's memory.img and table, by its snapshot.json

A model whose class or warm-up is code (family torch, module:function) is loaded or warmed up only if PREBAKE_ALLOW
lists its module; otherwise the model's line names that code.

Exit codes: 0 no differences; 1 something differs (each finding is listed); 2 wrong use.
"""


def add(commands: Commands) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "verify", help="check baked models and snapshots against their manifests", epilog=_EPILOG,
        description="Check every file of every model: presence, size, sha256, no other files, and the headers of the "
        "weights.",
        formatter_class=HelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "folder",
        type=Path,
        metavar="DIR",
        help="root of baked models, one model's folder, an OCI image layout, or a snapshot's",
    )
    parser.add_argument("--quick", action="store_true", help="do not hash the files")
    parser.add_argument("--key", type=Path, metavar="FILE", help="public key: also check the signature (prebake sign)")
    parser.add_argument("--platform", metavar="OS/ARCH", help="of a layout (default: this machine's)")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    folder: Path = options.folder
    if (folder / snapshots.MANIFEST).exists() and options.key:
        raise ConfigError(f"{folder}: --key: it is a snapshot, which has no signature (sign the image)")
    if is_part(folder):
        results = _verify_layout(folder, options)
    else:
        results = [_verify(each, quick=options.quick) for each in _folders(folder)]
        if options.key:
            results.append(_signature(folder, options.key))
    if options.json:
        print(json.dumps(results, indent=2))
    else:
        for result in results:
            print(f"{result['name']}  {result['set_digest'] or '-'}  {_verdict(result)}")
    for result in results:
        for finding in result["findings"]:
            print("\n".join(map(printable, f"prebake: {finding}".split("\n"))), file=sys.stderr)
    return 1 if any(result["findings"] for result in results) else 0


def _verify_layout(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The findings about the models in an OCI image layout, and about their signature."""
    with opened_image(str(folder), wanted=options.platform, check=not options.quick) as image:
        found = ImageModels.read(image, str(folder), hashes=not options.quick)
        results = [
            {"name": name, "set_digest": model.manifest.set_digest, "findings": found.findings(model), "notes": []}
            for name, model in found.models.items()
        ]
    if options.key:
        with tempfile.TemporaryDirectory(prefix="prebake-") as scratch:
            root = Path(scratch)
            results.append(_signature(root, options.key, lambda: found.write_signed(root)))
    return results


def _signature(root: Path, key: Path, where: Callable[[], str] | None = None) -> dict[str, Any]:
    """The findings about the signature, in the form of a model's. `where` fills the folder, and says what it is a copy
    of."""
    findings, place = [], str(root)
    try:
        place = where() if where else place
        verify(root, models_to_sign(root), key)
    except ConfigError:
        raise
    except PrebakeError as error:
        findings.append(str(error).replace(str(root), place))
    return {"name": layout.SIGNATURE, "set_digest": None, "findings": findings, "notes": []}


def _verdict(result: dict[str, Any]) -> str:
    if result["findings"]:
        return "differs"
    return "; ".join(["files as promised", *result["notes"]]) if result["notes"] else "as promised"


def _folders(folder: Path) -> list[Path]:
    if (folder / layout.MANIFEST).exists() or (folder / snapshots.MANIFEST).exists():
        return [folder]
    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no such folder (expected a root of baked models, or one of them)")
    found = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not found:
        raise ConfigError(f"{folder}: holds no baked model (run: prebake bake --output {folder})")
    return found


def _verify(folder: Path, *, quick: bool) -> dict[str, Any]:
    """The findings about one model. An unreadable manifest is a finding, so the other models are still checked."""
    if (folder / snapshots.MANIFEST).exists():
        found = snapshots.findings(folder, hashes=not quick)
        return {"name": folder.name, "set_digest": None, "findings": found, "notes": []}
    findings = []
    try:
        baked = BakedModel.open(folder)
    except PrebakeError as error:
        return {"name": folder.name, "set_digest": None, "findings": [str(error)], "notes": []}
    if baked.name != folder.resolve().name:
        findings.append(f"{folder}: its manifest names another model, {quote(baked.name)}")
    try:
        check_files(baked.folder, baked.manifest.files, allow=(layout.MANIFEST,), hashes=not quick)
    except PrebakeError as error:
        findings.append(str(error))
    except OSError as error:
        findings.append(f"{error.filename}: {reason(error)}")
    for file in baked.manifest.weights.all_files:
        try:
            read_header(baked.folder / file)
        except PrebakeError as error:
            findings.append(str(error))
    digest = baked.manifest.set_digest
    return {"name": baked.name, "set_digest": digest, "findings": findings, "notes": _notes(baked)}


def _notes(baked: BakedModel) -> list[str]:
    """Code that the manifest references and this command can't approve: hashes do not show who wrote the manifest."""
    named = [(baked.manifest.class_, "loads")] if baked.manifest.family == "torch" else []
    if isinstance(warmup := baked.manifest.loading.warmup, str):
        named.append((warmup, "runs as its warm-up"))
    allowed = allowed_modules()
    return [
        f"names the code {quote(code)}, which {does} only where {layout.ENV_ALLOW} names {quote(module)[1:-1]}"
        for code, does in named
        if not covers(allowed, module := code.partition(":")[0])
    ]
