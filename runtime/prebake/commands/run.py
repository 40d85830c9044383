"""`prebake run`: execute a command with baked models in place of those that it would load."""

from __future__ import annotations

from pathlib import Path

from prebake.adopt import ENV_OFF, ENV_REPORT, ENV_STRICT
from prebake.baked import layout
from prebake.errors import ConfigError

TYPE_CHECKING = False  # importing `typing` for its constant would cost time
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from prebake.commands.arguments import Commands

_DESCRIPTION = f"""\
Execute a command, and prepare every Python process below it: frameworks start sooner, and models that are baked are
mapped where the libraries would load them. The command's code does not change. {ENV_OFF}=0 turns everything off.
"""
_EPILOG = """\
examples:
  prebake run -- uvicorn app:app --workers 2
  prebake run --strict --report 127.0.0.1:9400 -- python -m worker

Exit codes: the command's own; 2 wrong use; 126 the command cannot be executed; 127 it is not found.
"""


def add(commands: Commands) -> None:
    """Add the subcommand."""
    import argparse  # here: `start` does without

    from prebake.commands.arguments import HelpFormatter

    parser = commands.add_parser(
        "run", help="execute a command with its models mapped", description=_DESCRIPTION, epilog=_EPILOG,
        formatter_class=HelpFormatter,
        usage="prebake run [--strict] [--report ADDRESS] [--root DIR] -- COMMAND ...",
    )  # fmt: skip
    parser.add_argument(
        "--strict", action="store_true",
        help=f"refuse loads of models that are not baked, and ask no hub (also: {ENV_STRICT}=1)",
    )  # fmt: skip
    parser.add_argument(
        "--report", metavar="ADDRESS",
        help=f"where the report goes: a file, unix:PATH, or 127.0.0.1:PORT (also: {ENV_REPORT})",
    )  # fmt: skip
    parser.add_argument("--root", type=Path, metavar="DIR", help=f"folder of baked models (default: {layout.ENV_ROOT})")
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND", help="the command and its arguments")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    command = options.words[1:] if options.words[:1] == ["--"] else options.words
    return start(command, root=options.root, strict=options.strict, report=options.report)


def start(command: Sequence[str], *, root: Path | None = None, strict: bool = False, report: str | None = None) -> int:
    """Execute the command; returns an exit code, after a message, only if that is impossible. Raises PrebakeError."""
    from prebake.adopt.launch import environment, execute, inherited

    if not command:
        raise ConfigError("run: no command: write it after --, as in `prebake run -- uvicorn app:app`")
    env = environment(inherited(), root=root, strict=strict, report=report)
    return execute(command, env)
