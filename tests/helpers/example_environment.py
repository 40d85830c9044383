"""The Python environment of someone who runs an example: what its requirements bring, and nothing of Prebake.

The environment of the tests has more than that: PyPI's torchvision, which does not load beside a torch for the CPU, and
Prebake itself; and it lacks torchaudio, which torchcrepe requires. So an example gets an environment of its own, whose
packages are links.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import tempfile
import venv
import zipfile
from configparser import ConfigParser
from pathlib import Path

from helpers import ROOT
from helpers.cpu_wheels import write_torchaudio
from prebake.documents import toml

_LEFT_OUT = (
    "torchvision",
    "easyocr",
    "torchaudio",
    "prebake",
    "image_analyzer",
    "__editable__",
    "_virtualenv",
    "distutils",
)
"""How the names begin of what is not linked."""

_ENTRIES = {
    "uvicorn": "from uvicorn import main",
    "gunicorn": "from gunicorn.app.wsgiapp import run as main",
    "prebake": "from prebake.__main__ import main",
}


def environment(folder: Path, *, prebake: bool = False) -> Path:
    """Make a virtual environment in `folder`, with links to the installed packages; the path of its interpreter.

    With `prebake`, it also has the runtime and the build of this checkout, with their command.
    """
    venv.create(folder, symlinks=True, with_pip=False)
    python = folder / "bin" / "python"
    packages = next(folder.glob("lib/python*/site-packages"))
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not entry.name.startswith(_LEFT_OUT) and entry.suffix != ".pth" and entry.name != "__pycache__":
            (packages / entry.name).symlink_to(entry)
    for script in Path(sys.executable).parent.iterdir():
        if script.name in ("uvicorn", "gunicorn"):
            _write_script(folder / "bin" / script.name, python, script.name)
    if prebake:
        _add_prebake(packages)
        _write_script(folder / "bin" / "prebake", python, "prebake")
    with tempfile.TemporaryDirectory() as scratch, zipfile.ZipFile(write_torchaudio(Path(scratch))) as wheel:
        wheel.extractall(packages)
    return python


def _add_prebake(packages: Path) -> None:
    """What an editable install writes: the paths, and the metadata with the entry points."""
    (packages / "prebake.pth").write_text(f"{ROOT / 'runtime'}\n{ROOT / 'build'}\n")
    for part in ("runtime", "build"):
        project = toml.loads((ROOT / part / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        entries = ConfigParser()
        entries.read_dict(project.get("entry-points", {}))
        folder = packages / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
        )
        with (folder / "entry_points.txt").open("w") as file:
            entries.write(file)


def variables(**more: str) -> dict[str, str]:
    """The environment variables of such a process: none of Prebake's, no token, no path of the tests."""
    own = ("PREBAKE", "HF_", "HUGGING_FACE", "TRANSFORMERS_", "PYTHON")
    return {name: value for name, value in os.environ.items() if not name.startswith(own)} | {
        "TQDM_DISABLE": "1", "NO_PROXY": "127.0.0.1,localhost", "TOKENIZERS_PARALLELISM": "false", **more,
    }  # fmt: skip


def _write_script(path: Path, python: Path, module: str) -> None:
    """A console script as pip writes it."""
    entry = _ENTRIES[module]
    path.write_text(f"#!{python}\nimport sys\n{entry}\nif __name__ == '__main__':\n    sys.exit(main())\n")
    path.chmod(0o755)
