"""The wheel of torchaudio that PyTorch's index for CPUs has, for machines that reach PyPI alone.

PyPI's wheel is built for CUDA and does not load beside a torch for the CPU. Without its compiled part the rest of it
works, so a wheel of the installed files without that part stands in, as version `…+cpu`, which pip prefers.
"""

from __future__ import annotations

import re
import zipfile
from base64 import urlsafe_b64encode
from hashlib import sha256
from importlib.metadata import distribution
from pathlib import Path

_WHEEL = "Wheel-Version: 1.0\nGenerator: prebake tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def write_torchaudio(folder: Path) -> Path:
    """Write the wheel into the folder, from the installed torchaudio; its path. The same bytes each time."""
    installed = distribution("torchaudio")
    version = f"{installed.version.partition('+')[0]}+cpu"
    info = f"torchaudio-{version}.dist-info"
    files = {
        file.as_posix(): Path(str(installed.locate_file(file))).read_bytes()
        for file in installed.files or ()
        if file.parts[0] == "torchaudio" and "__pycache__" not in file.parts and file.parts[1] != "lib"
    }
    metadata = re.sub(r"(?m)^Version: .*$", f"Version: {version}", installed.read_text("METADATA") or "", count=1)
    files |= {f"{info}/METADATA": metadata.encode(), f"{info}/WHEEL": _WHEEL.encode()}
    record = "".join(f"{name},sha256={_hash(body)},{len(body)}\n" for name, body in sorted(files.items()))
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    path = folder / f"torchaudio-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, body in sorted(files.items()):
            wheel.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), body, zipfile.ZIP_DEFLATED)
    return path


def _hash(body: bytes) -> str:
    return urlsafe_b64encode(sha256(body).digest()).rstrip(b"=").decode()
