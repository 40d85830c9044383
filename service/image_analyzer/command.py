"""`prebake serve`: the reference service."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from prebake import Models, Start, quickstart, snapshot

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
        "serve", help="run the reference service: image analysis over HTTP", epilog=_EXAMPLE,
        description="Run the reference service: image analysis over HTTP.\nThe port opens while the models load.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--root", default=os.environ.get("PREBAKE_ROOT") or "/models",
                        help="folder of baked models (default: PREBAKE_ROOT, now %(default)s)")  # fmt: skip
    parser.add_argument(
        "--allow", action="append", default=[], metavar="MODULE",
        help="Python module (with its submodules) whose code models of family torch may use; repeatable "
        "(also: PREBAKE_ALLOW, comma separated)",
    )  # fmt: skip
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s; images use 0.0.0.0)"
    )
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="default: %(default)s")
    parser.add_argument("--verify", choices=("size", "full"), default="size",
                        help="before a load: compare sizes (default), or hash every file")  # fmt: skip
    parser.add_argument("--lazy", action="store_true", help="load each model on first use")
    parser.add_argument(
        "--baseline", metavar="FILE", default=os.environ.get("PREBAKE_BASELINE"),
        help="recorded start that /startup compares with (default: PREBAKE_BASELINE)",
    )  # fmt: skip
    parser.add_argument(
        "--drain", type=_seconds, metavar="SECONDS", default=30.0,
        help="after SIGTERM, wait at most this long for active requests, then exit 1 (default: %(default)g)",
    )  # fmt: skip
    parser.add_argument(
        "--give-memory-back", action="store_true",
        help="return freed memory to the system after a second without requests (about 76 MB after a caption); "
             "page faults make the next request slower",
    )  # fmt: skip
    parser.set_defaults(run=lambda options: _serve(options, parser))


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError(text)
    return value


_seconds.__name__ = "number of seconds"  # argparse names it in "invalid … value"


def _serve(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    from image_analyzer.server import serve
    from image_analyzer.service import Application

    models = Models(options.root, verify=options.verify, allow=options.allow)
    quickstart.begin()
    if snapshot.wanted():
        from image_analyzer.restored import load_and_dump

        options = load_and_dump(models, options, parser)
    baseline = Start.read(Path(options.baseline)) if options.baseline else None
    begin = (lambda: None) if options.lazy else models.start
    idle = None
    if options.give_memory_back:
        from image_analyzer.idle import WhenIdle

        idle = WhenIdle()
    application = Application(models, lazy=options.lazy, idle=idle, baseline=baseline)
    serve(application, host=options.host, port=options.port, begin=begin, drain=options.drain)
    return 0
