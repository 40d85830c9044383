"""What several test modules share: stand-ins, builders of small models and checkpoints, processes, images."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The repository."""
