"""`prebake cache`: list, verify and prune the build cache."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prebake.commands.arguments import HelpFormatter
from prebake.documents.sizes import format_size, parse_size
from prebake.errors import ConfigError, DocumentError, IntegrityError
from prebake_build.cache.checkpoints import Cache
from prebake_build.cache.converted import Conversion, Conversions
from prebake_build.cache.entries import Entry, Kept, Partial, doomed
from prebake_build.cache.store import Store, default_folder

if TYPE_CHECKING:
    from prebake_build.commands import Commands

_EPILOG = """\
examples:
  prebake cache list --json
  prebake cache verify --kind converted
  prebake cache prune --older-than 30 --max-size 20GB --dry-run
  prebake cache prune --kind partial --all            unfinished downloads, which a fetch would go on with

kinds: checkpoint (as fetched), converted (as baked), partial (unfinished downloads)
The cache folder is --cache, else PREBAKE_CACHE, else ~/.cache/prebake.
exit codes: 0 success; 1 verify found damage; 2 wrong use or configuration
"""
_DAY = 86_400
_KINDS = (Entry.kind, Conversion.kind, Partial.kind)
_MENDED = {Entry.kind: "fetches", Conversion.kind: "converts"}


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "cache",
        help="list, verify or prune the build cache",
        description="The build cache keeps fetched checkpoints, one entry per source and revision, and baked models, "
        "one entry per recipe and versions.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
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
    prune.add_argument("--dry-run", action="store_true", help="say what would be removed, and remove nothing")
    prune.set_defaults(usage_error=prune.error)


def _action(
    actions: Commands, name: str, text: str, run: Callable[[argparse.Namespace], int]
) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=text, description=text, epilog=_EPILOG, formatter_class=HelpFormatter)
    parser.add_argument("--cache", type=Path, metavar="DIR", help="default: PREBAKE_CACHE, else ~/.cache/prebake")
    parser.add_argument("--kind", choices=_KINDS, action="append", help="only these; repeatable (default: all)")
    parser.add_argument("--json", action="store_true", help="print a JSON document")
    parser.set_defaults(run=run)
    return parser


@dataclass(frozen=True, eq=False, slots=True)
class _Found:
    """An entry and where it is."""

    kept: Kept
    store: Store
    created: float

    def document(self) -> dict[str, Any]:
        return {"key": self.kept.key, "kind": self.kept.kind, **_described(self.kept), "size": self.kept.size,
                "created": _when(self.created), "last_use": _when(self.kept.last_use)}  # fmt: skip

    def line(self) -> str:
        kept = self.kept
        age = f"{max(0.0, time.time() - self.created) / _DAY:.0f}d"
        return (f"{kept.key[:16]}  {kept.kind:10}  {format_size(kept.size):>7}  {age:>5}  {_when(kept.last_use)}  "
                f"{_title(kept)}")  # fmt: skip


def _described(kept: Kept) -> dict[str, Any]:
    if isinstance(kept, Entry):
        return {
            "uri": kept.uri,
            "revision": kept.revision,
            "files": len(kept.files),
            "path": str(kept.folder / "files"),
        }
    if isinstance(kept, Conversion):
        return {"name": kept.name, "uri": kept.uri, "revision": kept.revision, "set_digest": kept.set_digest,
                "versions": dict(kept.versions), "path": str(kept.folder / "files")}  # fmt: skip
    return {"path": str(kept.folder)}


def _title(kept: Kept) -> str:
    if isinstance(kept, Entry):
        return f"{kept.uri}  {kept.revision}"
    if isinstance(kept, Conversion):
        return f"{kept.name}  {kept.uri}  {kept.set_digest}"
    return "unfinished downloads"


def _found(args: argparse.Namespace, stack: ExitStack) -> tuple[_Found, ...]:
    """The entries of the wanted kinds, the most recently used first."""
    kinds = args.kind or _KINDS
    checkpoints = stack.enter_context(Cache(args.cache))
    converted = stack.enter_context(Conversions(args.cache))
    found: list[tuple[Kept, Store]] = []
    if Entry.kind in kinds:
        found += [(entry, checkpoints) for entry in checkpoints.entries()]
    if Partial.kind in kinds:
        found += [(partial, checkpoints) for partial in checkpoints.partials()]
    if Conversion.kind in kinds:
        found += [(entry, converted) for entry in converted.entries()]
    found.sort(key=lambda one: (-one[0].last_use, one[0].folder.name))
    return tuple(_Found(kept, store, _created(kept)) for kept, store in found)


def _created(kept: Kept) -> float:
    try:
        return kept.created
    except OSError:  # damaged, or removed just now
        return kept.last_use


def _list(args: argparse.Namespace) -> int:
    with ExitStack() as stack:
        found = _found(args, stack)
        in_use = [one.store.is_in_use(one.kept) for one in found]
    if args.json:
        _print_json(args, entries=[{**one.document(), "in_use": used} for one, used in zip(found, in_use, strict=True)])
        return 0
    for one, used in zip(found, in_use, strict=True):
        print(one.line() + ("  (in use)" if used else ""))
    _print_total(f"{_folder(args)}: {_entries(found)}")
    return 0


def _verify(args: argparse.Namespace) -> int:
    damage: dict[_Found, str] = {}
    with ExitStack() as stack:
        found = []
        for one in _found(args, stack):
            with one.store.using(one.kept) as there:
                if isinstance(one.kept, Partial) or not there:
                    continue
                found.append(one)
                try:
                    one.kept.check(trust=False)
                except (IntegrityError, DocumentError) as error:
                    damage[one] = str(error)
    if args.json:
        _print_json(args, entries=[{**one.document(), "damage": damage.get(one)} for one in found])
    else:
        for one in found:
            print(damage.get(one) or f"ok  {one.line()}")
    if damage:
        again = " or ".join(_MENDED[kind] for kind in dict.fromkeys(one.kept.kind for one in damage))
        them = "it" if len(damage) == 1 else "them"
        _print_total(f"{len(damage)} of {_entries(found)} damaged: the next bake {again} {them} again")
    return 1 if damage else 0


def _prune(args: argparse.Namespace) -> int:
    if not args.all and args.older_than is None and args.max_size is None:
        args.usage_error("say what to remove: --older-than DAYS, --max-size SIZE or --all")
    removed: list[_Found] = []
    in_use: list[_Found] = []
    with ExitStack() as stack:
        found = _found(args, stack)
        kept = [one.kept for one in found]
        chosen = kept if args.all else doomed(kept, now=time.time(), older_than=args.older_than, max_size=args.max_size)
        for one in found:
            if any(one.kept is entry for entry in chosen):
                gone = not one.store.is_in_use(one.kept) if args.dry_run else one.store.remove(one.kept)
                (removed if gone else in_use).append(one)
        if not args.dry_run:
            for store in (Cache(args.cache), Conversions(args.cache)):
                store.remove_leftovers()
    if args.json:
        _print_json(args, dry_run=args.dry_run, removed=[one.document() for one in removed],
                    in_use=[one.document() for one in in_use])  # fmt: skip
        return 0
    for one in removed:
        print(f"{'would remove' if args.dry_run else 'removed'}  {one.line()}")
    for one in in_use:
        print(f"in use   {one.line()}")
    freed = format_size(sum(one.kept.size for one in removed))
    _print_total(f"{_folder(args)}: {'would free' if args.dry_run else 'freed'} {freed}")
    return 0


def _folder(args: argparse.Namespace) -> Path:
    named: Path | None = args.cache
    return named or default_folder()


def _entries(found: Sequence[_Found]) -> str:
    noun = "entry" if len(found) == 1 else "entries"
    return f"{len(found)} {noun}, {format_size(sum(one.kept.size for one in found))}"


def _print_json(args: argparse.Namespace, **document: Any) -> None:
    print(json.dumps({"cache": str(_folder(args)), **document}, indent=2))


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
