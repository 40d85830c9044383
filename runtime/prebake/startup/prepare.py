"""`python -B -m prebake.startup.prepare DIR`: does once, in an image, what every start would repeat.

Writes the memo of transformers, if it is installed, into `DIR/memo` (`PREBAKE_MEMO`), and links the probe as
`DIR/probe.py`.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

from prebake.baked import layout
from prebake.startup import quickstart


def prepare(folder: Path) -> None:
    """Write the memo and link the probe. An earlier link is replaced."""
    link, probe = folder / "probe.py", Path(__file__).parents[1] / "telemetry" / "probe.py"
    link.unlink(missing_ok=True)
    link.symlink_to(probe)
    os.environ[layout.ENV_MEMO] = str(folder / "memo")
    quickstart.begin()
    if find_spec("transformers") is not None:
        import transformers

        print(f"{folder / 'memo'}: transformers {transformers.__version__}")


if __name__ == "__main__":
    prepare(Path(sys.argv[1]))
