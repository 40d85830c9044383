"""Model folders: canonical bytes, and either the old folder or the new one, never half.

Baking twice gives the same bytes: tensors and keys are sorted, no time stamp is written, files are 0644,
folders 0755, mtime 0. A new folder is made beside its place and moved there in one system call.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from prebake import layout
from prebake.errors import PrebakeError
from prebake.header import ITEM_SIZES
from prebake.manifest import File
from prebake.tensors import DTYPE_NAMES

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> File:
    """Write one safetensors file, a tensor at a time, and hash it on the way.

    Tensors are ordered by the size of their elements, large first, then by name, so that each is aligned
    to its elements without gaps. The header is padded with spaces: the data starts on a page.
    """
    order = sorted(tensors, key=lambda name: (-ITEM_SIZES[DTYPE_NAMES[tensors[name].dtype]], name))
    head = _header(tensors, order)
    digest = hashlib.sha256(head)
    size = len(head)
    with path.open("xb") as file:
        file.write(head)
        for name in order:
            data = _bytes(tensors[name])
            file.write(data)
            digest.update(data)
            size += len(data)
        file.flush()
        os.fsync(file.fileno())
    return File(path=path.name, size=size, sha256=digest.hexdigest())


def _header(tensors: Mapping[str, torch.Tensor], order: list[str]) -> bytes:
    # transformers refuses a file whose metadata does not name the framework
    document: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name in order:
        tensor = tensors[name]
        end = position + tensor.numel() * tensor.element_size()
        document[name] = {"dtype": DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape),
                          "data_offsets": [position, end]}  # fmt: skip
        position = end
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % layout.PAGE)
    return len(text).to_bytes(8, "little") + text


def _bytes(tensor: torch.Tensor) -> memoryview:
    """The elements, little-endian and in row-major order; a view where the tensor already is."""
    assert sys.byteorder == "little", "safetensors is little-endian, and so are all platforms of torch's wheels"
    whole = tensor.detach().to("cpu").contiguous()
    count = whole.numel() * whole.element_size()
    if not count:
        return memoryview(b"")
    raw = (ctypes.c_char * count).from_address(whole.data_ptr())
    raw._keep = whole  # type: ignore[attr-defined]  # the memory lives as long as the view
    return memoryview(raw).cast("B")


def write_text(path: Path, text: str) -> None:
    """A small new file, on disk when this returns."""
    with path.open("x", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def new_folder(output: Path, name: str) -> Iterator[Path]:
    """A folder to fill, which becomes `output/name` when the block ends well, and disappears otherwise.

    Raises PrebakeError where the output cannot be written or the disk is full; what stood there before
    is untouched then. A killed process leaves a `.baking-…` folder, which the next one removes.
    """
    work: Path | None = None
    try:
        output.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(output, name)
        work = Path(tempfile.mkdtemp(prefix=f".baking-{name}.", dir=output))
        folder = work / name
        folder.mkdir()
        yield folder
        make_canonical(folder)
        _put_in_place(folder, output / name)
    except OSError as error:
        raise PrebakeError(_explained(error, output, name)) from error
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)


def _explained(error: OSError, output: Path, name: str) -> str:
    what = f"{output}: cannot write the model {name}: {error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        with suppress(OSError):
            what += f" ({shutil.disk_usage(output).free:,} bytes are free): free some space, then bake again"
    return what + (". What stood there before is unchanged." if (output / name).is_dir() else "")


def _remove_leftovers(output: Path, name: str) -> None:
    for leftover in output.glob(f".baking-{name}.*"):
        shutil.rmtree(leftover, ignore_errors=True)


def make_canonical(folder: Path) -> None:
    """Give every file and folder below, and the folder itself, the one mode, owner and mtime."""
    for path in (*sorted(folder.rglob("*"), reverse=True), folder):
        path.chmod(0o755 if path.is_dir() else 0o644)
        if os.geteuid() == 0:
            os.chown(path, 0, 0)
        os.utime(path, (0, 0))


def _put_in_place(new: Path, place: Path) -> None:
    if not place.exists():
        new.rename(place)
    else:
        _exchange(new, place)
    _sync(place.parent)


def _exchange(new: Path, old: Path) -> None:
    """Swap two folders in one step (renameat2 of Linux 3.15; see man 2 rename).

    Where the kernel or the file system cannot, in two: between them the old folder is in the work folder.
    """
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
        failed = rename(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(old), _RENAME_EXCHANGE)
        code = ctypes.get_errno() if failed else 0
    except (AttributeError, OSError):
        code = errno.ENOSYS
    if code in (errno.ENOSYS, errno.EINVAL, errno.EXDEV, errno.ENOTSUP):
        old.rename(new.with_name(f"{new.name}.old"))
        new.rename(old)
    elif code:
        raise OSError(code, os.strerror(code), str(old))


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
