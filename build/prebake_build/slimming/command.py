"""`prebake slim`, and `python -m prebake_build.slimming`, which the image build calls: options and what they do."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from prebake.documents.messages import reason
from prebake.errors import ConfigError, PrebakeError
from prebake_build.slimming.apply import apply_plan
from prebake_build.slimming.installed import find_site_packages
from prebake_build.slimming.plan import make_plan
from prebake_build.slimming.report import document_of, table_of
from prebake_build.slimming.rules import read_rules

DESCRIPTION = (
    "Remove from an environment what inference never reads: headers, tests, type stubs, symbol tables and more, by a "
    "list with the reason of each entry. RECORD files stay true, licences stay. Meant for image builds: SLIM=0 keeps "
    "everything there."
)
EPILOG = """\
examples:
  prebake slim --dry-run .venv                  change nothing; print what would go, by rule
  prebake slim --explain                        the rules: what they match, why, and what needs it
  prebake slim /opt/prebake --keep 'torch/include/*' --keep '*/tests/*'

SLIM_KEEP holds patterns too, with spaces between them. A pattern is a path in site-packages; * also stands for /.

exit codes: 0 done; 1 a file cannot be read or changed; 2 wrong use
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("prefix", metavar="PREFIX", type=Path, nargs="?", help="the environment's folder")
    parser.add_argument("--keep", action="append", default=[], metavar="PATTERN", help="what stays; repeatable")
    parser.add_argument("--dry-run", action="store_true", help="change nothing; print what would go")
    parser.add_argument("--explain", action="store_true", help="print the rules and their reasons")
    parser.add_argument("--json", action="store_true", help="print a JSON document")


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code. Raises ConfigError, DocumentError, and PrebakeError if a change fails."""
    if options.explain:
        print(json.dumps(_rules(), indent=2, ensure_ascii=False) if options.json else "\n".join(_explained()))
        return 0
    if os.environ.get("SLIM") == "0":
        print("SLIM=0: everything stays.", file=sys.stderr)
        return 0
    if options.prefix is None:
        raise ConfigError("which environment? Name its folder: prebake slim --dry-run .venv")
    site = find_site_packages(options.prefix)
    if not options.dry_run and str(site.resolve()) in {os.path.realpath(folder) for folder in sys.path if folder}:
        raise ConfigError(
            f"{options.prefix}: this command runs in that environment: name one of an image, or use --dry-run"
        )
    keep = [*options.keep, *os.environ.get("SLIM_KEEP", "").split()]
    plan = make_plan(site, read_rules(), keep=keep)
    if not options.dry_run:
        try:
            apply_plan(plan)
        except OSError as error:
            raise PrebakeError(f"{error.filename or site}: cannot change it: {reason(error)}") from error
    if options.json:
        print(json.dumps(document_of(plan, applied=not options.dry_run), indent=2, ensure_ascii=False))
    else:
        print("\n".join(table_of(plan)))
    return 0


def _rules() -> list[dict[str, Any]]:
    return [
        {"name": rule.name, "action": rule.action, "paths": list(rule.paths.patterns),
         "package": None if rule.package.patterns == ("*",) else rule.package.patterns[0],
         "why": rule.reason, "breaks": rule.breaks}
        for rule in read_rules().rules
    ]  # fmt: skip


def _explained() -> list[str]:
    rules = read_rules()
    lines = []
    for rule in rules.rules:
        package = "" if rule.package.patterns == ("*",) else f" of {rule.package.patterns[0]}"
        lines += [f"{rule.name}: {rule.action} {' '.join(rule.paths.patterns)}{package}",
                  f"  why: {rule.reason}", f"  breaks: {rule.breaks}"]  # fmt: skip
    return lines
