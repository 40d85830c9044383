"""The parser of `prebake`'s command line: the subcommands of the runtime, and those that other distributions add.

The entry-point group is `prebake.commands`. The entry's name is the command's name; its value is a function that takes
argparse's subparsers and adds one. Only the requested command's module is imported.
"""

from __future__ import annotations

import argparse
from importlib import import_module

from prebake.commands.arguments import HelpFormatter

OWN: tuple[str, ...] = ("check", "inspect", "run", "snapshot")
GROUP = "prebake.commands"

_EPILOG = """\
examples, for any service (with prebake-build; prebake.toml may keep the command):
  prebake scan -- uvicorn app:app            start it once, see what it loads, write models.toml
  prebake lock                               pin revisions and hashes
  prebake bake --output models               fetch, convert, prove, write
  export PREBAKE_ROOT=models                 where the next three find them (or: --root models)
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
        prog="prebake", epilog=_EPILOG, formatter_class=HelpFormatter,
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
