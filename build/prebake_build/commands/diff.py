"""`prebake diff`: what changed between two sets of baked models."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prebake.documents.colour import paint
from prebake_build.images.difference import Change, differences
from prebake_build.images.models import open_models

if TYPE_CHECKING:
    from prebake_build.commands import Commands

_EPILOG = """\
examples:
  prebake diff models.old models            two folders of baked models
  prebake diff models weights/              a folder and an OCI image layout
  prebake diff models.old/caption models/caption --quick --json

Each line: added (+), removed (-) or changed (~), what it is, and both sides. Of weights that differ, every tensor whose
dtype, shape or values changed is listed.

exit codes: 0 no difference; 1 differences, or something that cannot be read; 2 wrong use
"""


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "diff", help="show what changed between two sets of baked models", epilog=_EPILOG,
        description="Compare two folders of baked models, or OCI image layouts: models, sources, versions, files, and "
        "every tensor's dtype, shape and values.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("before", type=Path, metavar="A")
    parser.add_argument("after", type=Path, metavar="B")
    parser.add_argument("--quick", action="store_true", help="do not compare the values of tensors")
    parser.add_argument("--platform", metavar="OS/ARCH", help="of layouts (default: this machine's)")
    parser.add_argument("--json", action="store_true", help="print a JSON document")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    before, after = (open_models(place, wanted=options.platform) for place in (options.before, options.after))
    changes = differences(before, after, values=not options.quick)
    if options.json:
        print(json.dumps([change.to_dict() for change in changes], indent=2, ensure_ascii=False))
    else:
        for line in _lines(changes):
            print(line)
    if not changes:
        print(f"{options.before} and {options.after} hold the same models.", file=sys.stderr)
    return 1 if changes else 0


def _lines(changes: Sequence[Change]) -> Iterator[str]:
    model = None
    for change in changes:
        if change.model != model:
            model = change.model
            yield paint(model, "bold", sys.stdout)
        if change.before is None:
            yield paint(f"  + {change.what}  {change.name}  {change.after}", "green", sys.stdout)
        elif change.after is None:
            yield paint(f"  - {change.what}  {change.name}  {change.before}", "red", sys.stdout)
        else:
            yield paint(f"  ~ {change.what}  {change.name}  {change.before} -> {change.after}", "yellow", sys.stdout)
