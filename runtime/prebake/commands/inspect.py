"""`prebake inspect`: the contents of a folder of baked models, or of a snapshot."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from prebake.baked import layout
from prebake.baked.inspection import describe, lines, table
from prebake.baked.model import BakedModel, find_models
from prebake.commands.arguments import subcommand
from prebake.documents.colour import paint
from prebake.errors import ConfigError

if TYPE_CHECKING:
    from prebake.commands.arguments import Commands

SNAPSHOT = "snapshot.json"


def add(commands: Commands) -> None:
    """Add the subcommand."""
    parser = subcommand(
        commands, "inspect", "show the contents of a folder of baked models (a table), of one model, or of a snapshot",
        "prebake inspect models/caption --tensors",
    )  # fmt: skip
    parser.add_argument("folder", type=Path, nargs="?", default=layout.default_root(), metavar="DIR",
                        help=f"default: {layout.ENV_ROOT}, now %(default)s")  # fmt: skip
    parser.add_argument("--tensors", action="store_true", help="list every tensor")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    folder: Path = options.folder
    if (folder / SNAPSHOT).exists():
        return _snapshot(folder, options)
    is_model = (folder / layout.MANIFEST).exists()
    models = [BakedModel.open(folder)] if is_model else find_models(folder)
    documents = [describe(baked, tensors=options.tensors) for baked in models]
    if options.json:
        print(json.dumps(documents, indent=2))
    elif len(documents) > 1 and not options.tensors:
        heading, *rows = table(documents).splitlines()
        print("\n".join([paint(heading, "bold", sys.stdout), *rows]))
    else:
        print("\n\n".join(map(lines, documents)))
    return 0


def _snapshot(folder: Path, options: argparse.Namespace) -> int:
    from prebake.snapshot import inspection  # models need none of it

    if options.tensors:
        raise ConfigError(f"{folder}: --tensors: it is a snapshot, which has none")
    document = inspection.describe(folder)
    print(json.dumps(document, indent=2, ensure_ascii=False) if options.json else inspection.lines(document))
    return 0
