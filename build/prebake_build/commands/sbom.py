"""`prebake sbom`: the bill of materials of baked models."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from prebake.commands.arguments import HelpFormatter
from prebake_build.files.atomic import write_text
from prebake_build.files.digest import unwritten
from prebake_build.images.opened import opened_models
from prebake_build.trust.sbom import bill_of_materials

if TYPE_CHECKING:
    from prebake_build.commands import Commands

_EPILOG = """\
examples:
  prebake sbom models --output models.cdx.json       of a folder of baked models
  prebake sbom weights/                              of an OCI image layout, to standard output
  prebake sbom app:latest                            of an image of the local engine

exit codes: 0 written; 1 models that cannot be read; 2 wrong use
"""


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "sbom", help="write the bill of materials of baked models (CycloneDX)", epilog=_EPILOG,
        description="Write a CycloneDX 1.6 ML-BOM of baked models: licence, source, hashes, lineage, converter. "
        "Needs the extra prebake-build[trust].",
        formatter_class=HelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "place", metavar="PLACE", help="root of baked models, one model, an OCI layout, or an image of the engine"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: standard output")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    with opened_models(options.place) as models:
        text = bill_of_materials([model.manifest for model in models.values()])
    if options.output is None:
        print(text, end="")
        return 0
    try:
        write_text(options.output, text)
    except OSError as error:
        raise unwritten(options.output, error) from error
    print(f"Wrote {options.output}.", file=sys.stderr)
    return 0
