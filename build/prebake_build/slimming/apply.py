"""Carries out a plan. It can be run again after it was interrupted: each step leaves the environment whole."""

from __future__ import annotations

from pathlib import Path

from prebake_build.slimming.elf import apply_cut
from prebake_build.slimming.installed import correct_record
from prebake_build.slimming.plan import Plan, gone_of


def apply_plan(plan: Plan) -> None:
    """Remove and strip the files, remove folders that are empty then, and correct every RECORD. Raises OSError."""
    folders = set()
    for change in plan.changes:
        path = plan.site / change.path
        if change.cut is not None:
            apply_cut(path, change.cut)
            continue
        for part in gone_of(change.path, change.rule, plan.site):
            (plan.site / part).unlink()
            folders.add((plan.site / part).parent)
    for folder in sorted(folders, key=lambda folder: -len(folder.parts)):
        _remove_empty(folder, plan.site)
    for distribution in plan.distributions:
        correct_record(distribution, plan.site)


def _remove_empty(folder: Path, site: Path) -> None:
    while folder != site and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent
