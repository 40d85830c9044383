"""The command `prebake`: check, inspect, run and snapshot; other distributions add theirs through entry points.

The entry-point group is `prebake.commands`. The entry's name is the command's name; its value is a function that takes
argparse's subparsers and adds one. Only the requested command's module is imported.
"""

from __future__ import annotations

import sys

if sys.argv[1:2] not in (["inspect"], ["run"], ["snapshot"]):
    from prebake.startup import readahead

    readahead.begin()  # before the imports below: they take longer than the reader thread takes to start

import argparse
import errno
import os
from collections.abc import Sequence
from importlib import import_module

from prebake.documents.messages import reason
from prebake.errors import PrebakeError

OWN: tuple[str, ...] = ("check", "inspect", "run", "snapshot")
GROUP = "prebake.commands"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code: 0 success, 1 a finding, 2 wrong use or configuration."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parser(arguments[0] if arguments else None).parse_args(arguments)
    try:
        if options.command != "run":  # it gives way to another program at once, and logs nothing
            _log_to_stderr()
        code = int(options.run(options))
        if (restored := sys.modules.get("prebake.telemetry.restored")) and restored.was_restored():
            from prebake.snapshot.leaving import leave

            leave(code)
        return code
    except PrebakeError as error:
        print(f"prebake: error: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # The reader of stdout closed the pipe (`| head`). Without this, Python reports the error again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = f": free some space there, or in the temporary folder ({_temporary()})" if full else ""
        print(f"prebake: error: {error.filename or options.command}: {reason(error)}{hint}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _temporary() -> str:
    return os.environ.get("TMPDIR") or "/tmp"  # noqa: S108  # only named


def _log_to_stderr() -> None:
    import logging

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for client in ("httpx", "httpx2"):  # they log every request of the hub's client
        logging.getLogger(client).setLevel(logging.WARNING)


_EPILOG = """\
examples, for any service (with prebake-build; prebake.toml may keep the command):
  prebake scan -- uvicorn app:app            start it once, see what it loads, write models.toml
  prebake lock                               pin revisions and hashes
  prebake bake --output models               fetch, convert, prove, write
  prebake run -- uvicorn app:app             the service, its models mapped
  prebake check -- uvicorn app:app           the same, with the timeline and what was mapped
  prebake measure -- uvicorn app:app         the same against the service as it is

`prebake COMMAND --help` has more of each.
"""


class _Version(argparse.Action):
    """Prints the installed distributions that are Prebake's or add to it, one in each line, and exits."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import distributions

        found = {
            distribution.name: distribution.version
            for distribution in distributions()
            if distribution.name == "prebake"
            or any(entry.group.startswith("prebake.") for entry in distribution.entry_points)
        }
        print("\n".join(f"{name} {found[name]}" for name in sorted(found)))
        parser.exit()


def parser(command: str | None) -> argparse.ArgumentParser:
    """A parser with this command alone, or with all commands if no command of this name is installed."""
    top = argparse.ArgumentParser(
        prog="prebake", epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Container images with model weights baked in: converted at build, memory-mapped at start.",
    )  # fmt: skip
    top.add_argument("--version", action=_Version, nargs=0, help="print the versions of Prebake's distributions")
    commands = top.add_subparsers(metavar="COMMAND", dest="command", required=True)
    if command in OWN:
        import_module(f"prebake.commands.{command}").add(commands)
        return top
    if command == "--version":
        return top
    from importlib.metadata import entry_points

    found = list(entry_points(group=GROUP, name=command)) if command else []
    if not found:
        for name in OWN:
            import_module(f"prebake.commands.{name}").add(commands)
        found = sorted(entry_points(group=GROUP), key=lambda entry: entry.name)
    for entry in found:
        entry.load()(commands)
    return top


if __name__ == "__main__":
    sys.exit(main())
