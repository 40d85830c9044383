"""`prebake cache`: list, verify and prune the build cache."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prebake.documents.sizes import format_size, parse_size
from prebake.errors import ConfigError, IntegrityError
from prebake_build.cache.checkpoints import Cache
from prebake_build.cache.entries import Entry, doomed

if TYPE_CHECKING:
    from prebake_build.commands import Commands

_EPILOG = """\
examples:
  prebake cache list --json
  prebake cache verify
  prebake cache prune --older-than 30 --max-size 20GB

The cache folder is --cache, else PREBAKE_CACHE, else ~/.cache/prebake.
exit codes: 0 success; 1 verify found damage; 2 wrong use or configuration
"""
_DAY = 86_400


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "cache",
        help="list, verify or prune the build cache",
        description="The build cache keeps fetched checkpoints, one entry per source and revision.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    _action(actions, "list", "list the entries, the most recently used first", _list)
    _action(actions, "verify", "hash every file; exit 1 if one differs", _verify)
    prune = _action(actions, "prune", "remove entries that are not in use", _prune)
    prune.add_argument("--older-than", type=_days, metavar="DAYS", help="remove entries unused for this long")
    prune.add_argument(
        "--max-size",
        type=_size,
        metavar="SIZE",
        help="remove the least recently used until this size (500MB, 20GB, 1TiB) is left",
    )
    prune.add_argument("--all", action="store_true", help="remove all entries")
    prune.set_defaults(usage_error=prune.error)


def _action(
    actions: Commands, name: str, text: str, run: Callable[[argparse.Namespace], int]
) -> argparse.ArgumentParser:
    parser = actions.add_parser(
        name, help=text, description=text, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cache", type=Path, metavar="DIR", help="default: PREBAKE_CACHE, else ~/.cache/prebake")
    parser.add_argument("--json", action="store_true", help="print a JSON document")
    parser.set_defaults(run=run)
    return parser


def _list(args: argparse.Namespace) -> int:
    with Cache(args.cache) as cache:
        entries = cache.entries()
    if args.json:
        _print_json(cache, entries=[_document(entry) for entry in entries])
    else:
        for entry in entries:
            print(_line(entry))
        _print_total(f"{cache.folder}: {_entries(entries)}")
    return 0


def _verify(args: argparse.Namespace) -> int:
    damage: dict[str, str] = {}
    with Cache(args.cache) as cache:
        entries = cache.entries()
        for entry in entries:
            try:
                entry.check(trust=False)
            except IntegrityError as error:
                damage[entry.folder.name] = str(error)
    if args.json:
        found = [{**_document(entry), "damage": damage.get(entry.folder.name)} for entry in entries]
        _print_json(cache, entries=found)
    else:
        for entry in entries:
            print(damage.get(entry.folder.name) or f"ok  {_line(entry)}")
    if damage:
        _print_total(f"{len(damage)} of {_entries(entries)} damaged: the next bake fetches them again")
    return 1 if damage else 0


def _prune(args: argparse.Namespace) -> int:
    if not args.all and args.older_than is None and args.max_size is None:
        args.usage_error("say what to remove: --older-than DAYS, --max-size SIZE or --all")
    removed: list[Entry] = []
    in_use: list[Entry] = []
    with Cache(args.cache) as cache:
        entries = cache.entries()
        chosen = entries if args.all else doomed(
            entries, now=time.time(), older_than=args.older_than, max_size=args.max_size
        )  # fmt: skip
        for entry in chosen:
            (removed if cache.remove(entry) else in_use).append(entry)
        cache.remove_leftovers()
    if args.json:
        _print_json(
            cache, removed=[_document(entry) for entry in removed], in_use=[_document(entry) for entry in in_use]
        )
        return 0
    for entry in removed:
        print(f"removed  {_line(entry)}")
    for entry in in_use:
        print(f"in use   {_line(entry)}")
    _print_total(f"{cache.folder}: freed {format_size(sum(entry.size for entry in removed))}")
    return 0


def _document(entry: Entry) -> dict[str, Any]:
    return {
        "key": entry.folder.name,
        "uri": entry.uri,
        "revision": entry.revision,
        "files": len(entry.files),
        "size": entry.size,
        "last_use": _when(entry.last_use),
        "path": str(entry.folder / "files"),
    }


def _line(entry: Entry) -> str:
    return f"{entry.folder.name}  {format_size(entry.size):>9}  {_when(entry.last_use)}  {entry.uri}  {entry.revision}"


def _entries(entries: tuple[Entry, ...]) -> str:
    noun = "entry" if len(entries) == 1 else "entries"
    return f"{len(entries)} {noun}, {format_size(sum(entry.size for entry in entries))}"


def _print_json(cache: Cache, **document: Any) -> None:
    print(json.dumps({"cache": str(cache.folder), **document}, indent=2))


def _print_total(text: str) -> None:
    print(text, file=sys.stderr)


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = math.nan
    if not (math.isfinite(days) and days >= 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of days")
    return days * _DAY


def _size(text: str) -> int:
    try:
        return parse_size(text, "size")
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("size: ")) from None
