"""Killed at random moments, commands leave nothing half (`python -m helpers.command_kills` does it longer)."""

from __future__ import annotations

from pathlib import Path

from helpers.command_kills import COMMANDS, kill


def test_killed_commands_leave_nothing_half_and_lose_nothing(tmp_path: Path) -> None:
    hit = kill(12, tmp_path)
    assert set(hit) == set(COMMANDS)
    assert sum(hit.values()) <= 12
