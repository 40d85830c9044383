"""Where the view of the Hugging Face cache is: in the baked tree, or in a temporary folder that is made here.

`prebake bake` writes the view beside the models. A tree that has lost its links (some tools copy them as nothing), or
was baked before, gets one in a temporary folder, made once for each set of models and user.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

from prebake.adopt.catalogue import Catalogue, catalogue
from prebake.baked import hub, layout

_PLACES = ("/dev/shm", "")  # noqa: S108  # else the system's folder for temporary files
_PREFIX = "prebake-hub-"


def view_folder(models: Catalogue, root: Path) -> Path | None:
    """The folder for `HF_HUB_CACHE`, made if necessary; None if no model comes from the hub, or nothing is writable."""
    view = hub.view_of(models.models)
    if not view:
        return None
    baked = root / hub.FOLDER
    if hub.is_complete(view, baked, root):
        return baked.absolute()
    import tempfile

    for place in _PLACES:
        try:
            return _made(view, root.absolute(), Path(place or tempfile.gettempdir()))
        except OSError:
            continue
    return None


def process_view() -> Path | None:
    """The view of this process's catalogue, looked for once."""
    root = layout.default_root()
    if root not in _known:
        _known[root] = view_folder(catalogue(), root)
    return _known[root]


_known: dict[Path, Path | None] = {}


def _made(view: hub.View, root: Path, place: Path) -> Path:
    """The temporary view; its name depends on its content, so that all processes and later starts share one.

    A folder of this name that belongs to another user, or that others may write to, is not used: its links could lead
    anywhere.
    """
    import hashlib  # here: most starts find the baked view, and `prebake run` should take no time
    import shutil
    import tempfile

    content = json.dumps([str(root), os.geteuid(), dict(view.links), dict(view.refs)], sort_keys=True)
    folder = place / (_PREFIX + hashlib.sha256(content.encode()).hexdigest()[:16])
    if _is_ours(folder) and hub.is_complete(view, folder, root):
        return folder
    made = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}new-", dir=place))  # mode 0700
    try:
        hub.write(view, made, str(root))
        try:
            made.rename(folder)
        except OSError:  # another process was faster, or the folder is not ours
            if _is_ours(folder) and hub.is_complete(view, folder, root):
                shutil.rmtree(made, ignore_errors=True)
                return folder
            return made
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return folder


def _is_ours(folder: Path) -> bool:
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not stat.S_IMODE(found.st_mode) & 0o022
