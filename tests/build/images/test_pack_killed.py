"""Killed at random moments, `bake --oci` leaves a whole layout or none (`python -m helpers.kills` does it longer)."""

from __future__ import annotations

from pathlib import Path

from helpers.kills import kill


def test_a_killed_write_leaves_the_old_layout_the_new_one_or_none(tmp_path: Path) -> None:
    tally = kill(8, tmp_path)
    assert tally.first + tally.second + tally.absent == 8
