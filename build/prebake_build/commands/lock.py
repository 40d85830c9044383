"""`prebake lock`: resolves revisions and hashes into `models.lock`, or reports drift."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from prebake.commands.arguments import HelpFormatter
from prebake.errors import ConfigError
from prebake_build.cache.checkpoints import Cache
from prebake_build.declared.lock import DamagedLockError, Lock, LockedModel, drift, update
from prebake_build.declared.spec import read_spec
from prebake_build.declared.upgrade import upgrade_pins

if TYPE_CHECKING:
    from prebake_build.commands import Commands

_log = logging.getLogger(__name__)

_EPILOG = """\
examples:
  prebake lock                          resolve every model of models.toml into models.lock
  prebake lock caption                  only this one; the others keep their locked revisions
  prebake lock --upgrade caption        the newest commit of a source that models.toml pins
  prebake lock --check                  change nothing; report drift and exit 1 if there is any

exit codes: 0 locked, or no drift; 1 drift, or a model that cannot be resolved; 2 wrong use or configuration
"""


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "lock",
        help="resolve revisions and hashes into models.lock",
        description="Resolve models.toml to exact revisions, sizes and hashes, and write them to models.lock.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("names", metavar="NAME", nargs="*", help="models to resolve (default: all)")
    parser.add_argument("--models", type=Path, metavar="FILE", default=Path("models.toml"), help="default: models.toml")
    parser.add_argument("--lock", type=Path, metavar="FILE", help="default: models.lock next to models.toml")
    parser.add_argument(
        "--upgrade",
        action="append",
        default=[],
        metavar="NAME",
        help="take on the newest revision of this model, also if models.toml pins a commit, which is replaced there; "
        "repeatable",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="only report differences from upstream and models.toml, one per line; write nothing",
    )
    parser.add_argument(
        "--allow-unresolved",
        action="store_true",
        help="for a model that cannot be resolved, keep the locked revision, or record the reason",
    )
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="build cache (default: PREBAKE_CACHE, ~/.cache/prebake)"
    )
    parser.add_argument("--json", action="store_true", help="print the locked models, or the differences, as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    if args.upgrade and (args.check or args.names):
        raise ConfigError("--upgrade: cannot be combined with --check or names (it names its own models)")
    spec = read_spec(args.models)
    path: Path = args.lock or args.models.with_suffix(".lock")
    old = _old(args, path)
    with Cache(args.cache) as cache:
        if args.upgrade:
            before, spec = spec, upgrade_pins(spec, args.upgrade, cache)
            for was, now in zip(before.models, spec.models, strict=True):
                if was.source != now.source:
                    print(f"{args.models}: models.{now.name}.source: {was.source} -> {now.source}", file=sys.stderr)
        new = update(spec, args.upgrade or args.names, old, cache, allow_unresolved=args.allow_unresolved)
    if args.check:
        return _check(path, drift(old or new, new), args.models, as_json=args.json)
    changed = not path.exists() or path.read_bytes() != new.text.encode()
    if changed:
        new.write(path)
    if args.json:
        print(json.dumps([_document(name, new.models[name]) for name in sorted(new.models)], indent=2))
    for name in () if args.json else sorted(new.models):
        print(_line(name, new.models[name]))
    print(f"Wrote {path}." if changed else f"{path} is up to date.", file=sys.stderr)
    return 0


def _old(args: argparse.Namespace, path: Path) -> Lock | None:
    """The lock so far. A damaged one counts as none if every model is resolved anew."""
    if not args.check and not path.exists():
        return None
    try:
        return Lock.read(path)
    except DamagedLockError as error:
        if args.check or args.names or args.upgrade:
            raise
        _log.warning("%s: writing it anew, without what `prebake bake --record` wrote into it", error.what)
        return None


def _check(path: Path, lines: list[str], models: Path, *, as_json: bool) -> int:
    if as_json:
        print(json.dumps(lines, indent=2))
    for line in () if as_json else lines:
        print(line)
    if lines:
        print(
            f"{path} has drifted: run `prebake lock --models {models} --lock {path}` to take this on.", file=sys.stderr
        )
    else:
        print(f"{path} is up to date.", file=sys.stderr)
    return 1 if lines else 0


def _document(name: str, model: LockedModel) -> dict[str, str | int | None]:
    resolved = model.resolved
    files = resolved.files if resolved else ()
    return {"name": name, "source": model.source, "revision": resolved.revision if resolved else None,
            "files": len(files), "bytes": sum(file.size for file in files)}  # fmt: skip


def _line(name: str, model: LockedModel) -> str:
    if model.resolved is None:
        return f"{name}  unresolved  {model.source}"
    files = model.resolved.files
    return f"{name}  {model.resolved.revision}  {len(files)} files, {sum(file.size for file in files):,} bytes"
