"""`prebake serve`: the reference service."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from prebake import Models, Start, quickstart

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

DEFAULT_PORT = 8000

_EXAMPLE = """\
example:
  prebake serve --root models --port 8000
"""


def add(commands: Commands) -> None:
    """Add `prebake serve`."""
    parser = commands.add_parser(
        "serve", help="answer about images over HTTP while the models load", epilog=_EXAMPLE,
        description="Answer about images over HTTP while the models load.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--root", default=os.environ.get("PREBAKE_ROOT") or "/models",
                        help="folder of baked models (default: PREBAKE_ROOT, now %(default)s)")  # fmt: skip
    parser.add_argument(
        "--allow", action="append", default=[], metavar="MODULE",
        help="module whose code a manifest of family torch may name, with its submodules; repeat it for more "
        "(also: PREBAKE_ALLOW, comma separated)",
    )  # fmt: skip
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s; images use 0.0.0.0)"
    )
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="default: %(default)s")
    parser.add_argument("--verify", choices=("size", "full"), default="size",
                        help="before a load: compare sizes (default), or hash every file")  # fmt: skip
    parser.add_argument("--lazy", action="store_true", help="load each model when it is first asked for")
    parser.add_argument(
        "--baseline", metavar="FILE", default=os.environ.get("PREBAKE_BASELINE"),
        help="recorded start that /startup compares with (default: PREBAKE_BASELINE)",
    )  # fmt: skip
    parser.add_argument(
        "--drain", type=_seconds, metavar="SECONDS", default=30.0,
        help="after SIGTERM, let requests under way finish for at most this long, then exit 1 (default: %(default)g)",
    )  # fmt: skip
    parser.add_argument(
        "--give-memory-back", action="store_true",
        help="return freed memory to the system after a second without questions (about 76 MB after a caption); "
             "the next question is slower by the page faults",
    )  # fmt: skip
    parser.set_defaults(run=_serve)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError(text)
    return value


_seconds.__name__ = "number of seconds"  # argparse names it in "invalid … value"


def _serve(options: argparse.Namespace) -> int:
    from image_analyzer.server import serve
    from image_analyzer.service import Application

    models = Models(options.root, verify=options.verify, allow=options.allow)
    baseline = Start.read(Path(options.baseline)) if options.baseline else None
    quickstart.begin()
    begin = (lambda: None) if options.lazy else models.start
    idle = None
    if options.give_memory_back:
        from image_analyzer.idle import WhenIdle

        idle = WhenIdle()
    application = Application(models, lazy=options.lazy, idle=idle, baseline=baseline)
    serve(application, host=options.host, port=options.port, begin=begin, drain=options.drain)
    return 0
