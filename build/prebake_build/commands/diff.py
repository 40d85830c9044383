"""`prebake diff`: what changed between two sets of baked models."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from prebake.commands.arguments import HelpFormatter
from prebake.documents.colour import paint
from prebake.documents.messages import printable
from prebake_build.images.difference import Change, differences
from prebake_build.images.opened import opened_models

if TYPE_CHECKING:
    from prebake_build.commands import Commands

_EPILOG = """\
examples:
  prebake diff models.old models            two folders of baked models
  prebake diff models weights/              a folder and an OCI image layout
  prebake diff app:v1 app:v2                two images of the local engine
  prebake diff models.old/caption models/caption --quick --json

Each line: added (+), removed (-) or changed (~), what it is, and both sides. Of weights that differ, every tensor whose
dtype, shape or values changed is listed.

exit codes: 0 no difference; 1 differences, or something that cannot be read; 2 wrong use
"""


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "diff", help="show what changed between two sets of baked models", epilog=_EPILOG,
        description="Compare two folders of baked models, OCI image layouts or images: models, sources, versions, "
        "files, and every tensor's dtype, shape and values.",
        formatter_class=HelpFormatter,
    )  # fmt: skip
    parser.add_argument("before", metavar="A")
    parser.add_argument("after", metavar="B")
    parser.add_argument(
        "--quick", action="store_true", help="do not compare the values of tensors, nor hash the layers of layouts"
    )
    parser.add_argument("--platform", metavar="OS/ARCH", help="of layouts (default: this machine's)")
    parser.add_argument("--json", action="store_true", help="print a JSON document")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    values = not options.quick
    with (
        opened_models(options.before, wanted=options.platform, check=values) as before,
        opened_models(options.after, wanted=options.platform, check=values) as after,
    ):
        changes = differences(before, after, values=values)
    if options.json:
        print(json.dumps([change.to_dict() for change in changes], indent=2))
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
            yield paint(printable(model), "bold", sys.stdout)
        what = f"{change.what}  {change.name}"
        if change.before is None:
            line, style = f"  + {what}  {change.after}", "green"
        elif change.after is None:
            line, style = f"  - {what}  {change.before}", "red"
        else:
            line, style = f"  ~ {what}  {change.before} -> {change.after}", "yellow"
        yield paint(printable(line), style, sys.stdout)
