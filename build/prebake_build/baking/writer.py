"""Writes model folders with canonical bytes, and replaces an old folder atomically.

Baking twice gives the same bytes: tensors and keys are sorted, no timestamps are written, files are 0644, folders 0755,
mtimes 0. A new folder is created next to its final place and moved there in one system call. Only one bake at a time
uses an output folder, so every `.baking-…` in it belongs to a bake that was killed.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from prebake.baked import hub, layout
from prebake.baked.model import BakedModel
from prebake.documents.messages import reason
from prebake.errors import ConfigError, DocumentError, PrebakeError
from prebake_build.files.atomic import clear_leftovers, put_in_place, sync_tree
from prebake_build.files.digest import FULL
from prebake_build.files.flock import locked_folder

_WORK = ".baking-"
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


@contextmanager
def alone_in(output: Path) -> Iterator[None]:
    """Create the folder if necessary, wait until no other bake uses it, and remove what killed bakes left.

    Raises ConfigError if the folder can't be created.
    """
    with ExitStack() as stack:
        try:
            output.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked_folder(output))
        except OSError as error:
            raise ConfigError(f"{output}: cannot bake into this folder: {reason(error)}: name another") from error
        clear_leftovers(output, _WORK)
        yield


@contextmanager
def new_folder(output: Path, name: str) -> Iterator[Path]:
    """A folder to fill. It becomes `output/name` if the block succeeds, and is removed otherwise.

    Use it inside `alone_in(output)`. Raises ConfigError if the output can't be written to, or `output/name` exists and
    is not a baked model, and PrebakeError if the disk is full. After any error, the previous folder is unchanged.
    """
    place = output / name
    if os.path.lexists(place) and not (place / layout.MANIFEST).is_file():
        raise ConfigError(
            f"{place}: exists and is not a baked model (it has no {layout.MANIFEST}): move it, or name another output"
        )
    work: Path | None = None
    try:
        work = Path(tempfile.mkdtemp(prefix=f"{_WORK}{name}.", dir=output))
        folder = work / name
        folder.mkdir()
        yield folder
        make_canonical(folder)
        sync_tree(folder)
        put_in_place(folder, place)
    except OSError as error:
        raise _explained(error, output, name) from error
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)


def check_space(folder: Path, size: int) -> None:
    """Raise PrebakeError if the disk of a folder of `new_folder` has no room for so many bytes."""
    if (free := shutil.disk_usage(folder).free) < size:
        output = folder.parents[1]  # `new_folder` makes OUTPUT/.baking-…/NAME
        raise PrebakeError(
            f"{output}: the model {folder.name} takes {size:,} bytes, and {free:,} are free: free some space, "
            "or name another folder with --output"
        )


def write_view(output: Path) -> None:
    """Write the view of all models in the output (`hub.FOLDER`), in place of the one that is there.

    Use it inside `alone_in(output)`. Without a model from the hub, there is no view. Raises like `new_folder`.
    """
    place = output / hub.FOLDER
    models = []
    for path in sorted(output.glob(f"[!.]*/{layout.MANIFEST}")):
        with suppress(DocumentError):  # of another version of Prebake
            models.append(BakedModel.open(path.parent))
    view = hub.view_of(models)
    work: Path | None = None
    try:
        if not view:
            shutil.rmtree(place, ignore_errors=True)
            return
        work = Path(tempfile.mkdtemp(prefix=f"{_WORK}{hub.FOLDER}.", dir=output))
        folder = work / hub.FOLDER
        folder.mkdir()
        hub.write(view, folder, "..")
        make_canonical(folder)
        sync_tree(folder)
        put_in_place(folder, place)
    except OSError as error:
        raise _explained(error, output, hub.FOLDER) from error
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)


def _explained(error: OSError, output: Path, name: str) -> PrebakeError:
    what = f"{output}: cannot write the model {name}: {reason(error)}"
    if error.errno in FULL:
        with suppress(OSError):
            what += f" ({shutil.disk_usage(output).free:,} bytes are free): free some space, then bake again"
    what += ". The previous folder is unchanged." if (output / name).is_dir() else ""
    return ConfigError(what) if error.errno in _NOT_WRITABLE else PrebakeError(what)


def make_canonical(folder: Path) -> None:
    """Set the canonical mode, owner and mtime on the folder and everything below it."""
    for path in (*sorted(folder.rglob("*"), reverse=True), folder):
        if not path.is_symlink():  # a link has no mode
            path.chmod(0o755 if path.is_dir() else 0o644)
        if os.geteuid() == 0:
            os.chown(path, 0, 0, follow_symlinks=False)
        os.utime(path, (0, 0), follow_symlinks=False)
