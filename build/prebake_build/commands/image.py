"""`prebake image`: checks images that carry model weights."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from prebake.commands.arguments import HelpFormatter
from prebake.documents.messages import printable
from prebake.documents.sizes import format_size
from prebake_build.images.checks.check import RULES, check
from prebake_build.images.checks.findings import Finding
from prebake_build.images.oci_layout import Image
from prebake_build.images.opened import opened_image

if TYPE_CHECKING:
    from prebake_build.commands import Commands

_EPILOG = f"""\
examples:
  prebake image check app:latest                  an image of the local engine
  prebake image check weights/                    an OCI image layout
  prebake image check app:latest --registry ghcr --ignore missing-annotations --json

rules: {", ".join(RULES)}

exit codes: 0 no findings; 1 findings, or an image that cannot be read; 2 wrong use
"""


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser("image", help="check an image that carries model weights", epilog=_EPILOG,
                                 formatter_class=HelpFormatter)  # fmt: skip
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    action = actions.add_parser(
        "check", help="find duplicate weights, secrets, unreadable files and more", epilog=_EPILOG,
        description="Look for what makes an image with model weights large, slow, unsafe or broken. Each finding names "
        "its layer, its bytes, and the way to mend it.",
        formatter_class=HelpFormatter,
    )  # fmt: skip
    action.add_argument("image", metavar="IMAGE", help="an image of the engine, or the folder of an OCI image layout")
    action.add_argument("--tag", help="the image in a layout that holds several")
    action.add_argument("--platform", metavar="OS/ARCH", help="of a layout (default: this machine's)")
    action.add_argument("--ignore", action="append", default=[], metavar="RULE", help="leave out a rule; repeatable")
    action.add_argument("--registry", action="append", default=[], metavar="NAME",
                        help="where it is pushed: ghcr, ecr, ecr-public; repeatable (default: all)")  # fmt: skip
    action.add_argument("--gpu", action="store_true", help="the image is meant for GPUs")
    action.add_argument("--json", action="store_true", help="print a JSON document")
    action.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    with opened_image(options.image, tag=options.tag, wanted=options.platform) as image:
        findings = check(image, ignored=options.ignore, registries=options.registry, gpu=options.gpu)
        if options.json:
            document = {"image": options.image, "platform": image.platform, "digest": image.digest,
                        "findings": [finding.to_dict(image) for finding in findings]}  # fmt: skip
            print(json.dumps(document, indent=2))
        else:
            for finding in findings:
                print("\n".join(map(printable, _lines(finding, image))))
        layers = len(image.manifest.layers)
    size = format_size(sum(layer.size for layer in image.manifest.layers))
    print(f"{options.image}: {_count(len(findings), 'finding')} ({_count(layers, 'layer')}, {size})", file=sys.stderr)
    return 1 if findings else 0


def _lines(finding: Finding, image: Image) -> list[str]:
    size = f"  {format_size(finding.bytes)}" if finding.bytes else ""
    lines = [f"{finding.rule}{size}  {finding.message}"]
    if finding.layer is not None:
        digest = image.manifest.layers[finding.layer].digest[:19]
        created_by = image.config.instruction(finding.layer)
        shown = created_by if len(created_by) <= 70 else created_by[:67] + "..."
        lines.append(f"  layer {finding.layer}  {digest}  {shown}".rstrip())
    lines += [f"  {path}" for path in finding.shown]
    return [*lines, f"  mend: {finding.mend}"]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
