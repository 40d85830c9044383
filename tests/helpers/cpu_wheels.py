"""The wheel of torchaudio that PyTorch's index for CPUs has, for machines that reach PyPI alone.

PyPI's wheel is built for CUDA and does not load beside a torch for the CPU. Without its compiled part the rest of it
works, so a wheel without that part stands in, as version `…+cpu`, which pip prefers.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from base64 import urlsafe_b64encode
from functools import cache
from hashlib import sha256
from pathlib import Path

from helpers import ROOT

_WHEEL = "Wheel-Version: 1.0\nGenerator: prebake tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_WHEEL_TIME = (1980, 1, 1, 0, 0, 0)


def write_torchaudio(folder: Path) -> Path:
    """Write the wheel into the folder; its path. The same bytes each time. Needs pip's index, once in a process."""
    version, content = _content()
    path = folder / f"torchaudio-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, body in sorted(content.items()):
            wheel.writestr(zipfile.ZipInfo(name, _WHEEL_TIME), body, zipfile.ZIP_DEFLATED)
    return path


@cache
def _content() -> tuple[str, dict[str, bytes]]:
    """Version and files of the wheel, from PyPI's of the version that the example requires."""
    (wanted,) = re.findall(r"(?m)^torchaudio==(\S+)$", (ROOT / "examples/transcripts/requirements.txt").read_text())
    version = f"{wanted}+cpu"
    info = f"torchaudio-{version}.dist-info"
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch]
        subprocess.run([*command, f"torchaudio=={wanted}"], check=True, timeout=300)
        (downloaded,) = Path(scratch).glob("torchaudio-*.whl")
        with zipfile.ZipFile(downloaded) as wheel:
            names = [name for name in wheel.namelist() if re.match(r"torchaudio/(?!lib/).*[^/]$", name)]
            files = {name: wheel.read(name) for name in names}
            (metadata,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
            text = wheel.read(metadata).decode()
    files[f"{info}/METADATA"] = re.sub(r"(?m)^Version: .*$", f"Version: {version}", text, count=1).encode()
    files[f"{info}/WHEEL"] = _WHEEL.encode()
    record = "".join(f"{name},sha256={_hash(body)},{len(body)}\n" for name, body in sorted(files.items()))
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    return version, files


def _hash(body: bytes) -> str:
    return urlsafe_b64encode(sha256(body).digest()).rstrip(b"=").decode()
