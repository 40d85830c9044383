"""Executes a command with every Python process below it prepared: environment variables, then `exec`.

The command takes this process's place, so its process id, standard streams, signals and exit code are its own.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from pathlib import Path

from prebake.adopt import ENV_OFF, ENV_REPORT, ENV_SERVICE, ENV_STRICT
from prebake.baked import layout

SITE = Path(__file__).with_name("site")
NOT_FOUND, NOT_EXECUTABLE = 127, 126
"""Exit codes of a shell for a command that is not found, or cannot be executed."""

ENV_OFFLINE = "HF_HUB_OFFLINE"
ENV_HUB_CACHE = "HF_HUB_CACHE"
HUB = ".hub"
"""Folder of the view: `baked.hub.FOLDER`, whose import takes long."""
_CACHES = (ENV_HUB_CACHE, "HUGGINGFACE_HUB_CACHE")
"""Variables that name the folder itself."""
_TRUE = frozenset({"1", "ON", "YES", "TRUE"})


def environment(
    given: Mapping[str, str], *, root: Path | None = None, strict: bool = False, report: str | None = None
) -> dict[str, str]:
    """The command's environment: the given one and what prepares its processes.

    With `PREBAKE=0` in it, nothing is added. Raises ConfigError for a wrong report address, or if `strict` and no model
    is baked; DocumentError, ConfigError or IntegrityError for a manifest that has to be read here, and cannot be.
    """
    added = dict(given)
    if given.get(ENV_OFF) == "0":
        return added
    path = given.get("PYTHONPATH")
    added["PYTHONPATH"] = os.pathsep.join([str(SITE), path]) if path else str(SITE)
    added[ENV_SERVICE] = os.urandom(8).hex()
    if root is not None or given.get(layout.ENV_ROOT):  # absolute, as all paths here: a process may change its folder
        added[layout.ENV_ROOT] = str(Path(root or given[layout.ENV_ROOT]).absolute())
    if strict:
        added[ENV_STRICT] = "1"
        added[ENV_OFFLINE] = "1"
    if report is not None:
        added[ENV_REPORT] = report
    if added.get(ENV_REPORT):
        from prebake.adopt.address import Address

        where = "--report" if report is not None else ENV_REPORT
        address = Address.parse(added[ENV_REPORT], where).absolute()
        added[ENV_REPORT] = str(Address.parse(str(address), where))
    _use_view(added, strict=added.get(ENV_STRICT) == "1")
    return added


def _use_view(added: MutableMapping[str, str], *, strict: bool) -> None:
    """Set the cache of huggingface_hub to the view of the baked models, if nothing else could be in that cache.

    That is: the process is offline, and the user has no cache of models. Elsewhere the hooks read the view.

    Manifests are read only if there must be a model, a signature or a new view: the processes read them anyway, and
    here they would take longer than all the rest.
    """
    root = Path(added.get(layout.ENV_ROOT) or layout.DEFAULT_ROOT)
    wants_view = added.get(ENV_OFFLINE, "").upper() in _TRUE and not _has_cache(added)
    must_read = added.get(layout.ENV_VERIFY_KEY) or (strict and not _has_manifest(root))
    folder = _baked_view(root) if wants_view else None
    if must_read or (wants_view and folder is None):
        folder = _made_view(root, strict=strict, wanted=wants_view)
    if folder is not None:
        added[ENV_HUB_CACHE] = str(folder)


def _has_manifest(root: Path) -> bool:
    return any(_below(root, "*/" + layout.MANIFEST))


def _baked_view(root: Path) -> Path | None:
    """The view beside the models, if every commit in it has files, and no link is broken."""
    view = root / HUB
    commits = list(_below(view, "models--*/snapshots/*"))
    whole = len({commit.parent for commit in commits}) == len(list(_below(view, "models--*"))) > 0
    return view.absolute() if whole and all(_is_whole(commit) for commit in commits) else None


def _is_whole(folder: Path) -> bool:
    files = [Path(place, name) for place, _, names in os.walk(folder) for name in names]
    return bool(files) and all(file.is_symlink() and file.exists() for file in files)


def _below(folder: Path, pattern: str) -> Iterable[Path]:
    try:
        return list(folder.glob(pattern))
    except OSError:
        return ()


def _made_view(root: Path, *, strict: bool, wanted: bool) -> Path | None:
    from prebake.adopt.catalogue import Catalogue
    from prebake.errors import ConfigError

    models = Catalogue.read(root)
    if not models.models and strict:
        raise ConfigError(
            f"{root}: holds no baked model, and --strict refuses all others (set {layout.ENV_ROOT} or --root)"
        )
    if not models.models or not wanted:
        return None
    from prebake.adopt.view import view_folder

    return view_folder(models, root)


def _has_cache(given: Mapping[str, str]) -> bool:
    """Whether the user has named a cache, or has models in the default one."""
    if any(given.get(name) for name in _CACHES):
        return True
    home = Path(given.get("HOME") or "/")
    caches = Path(given.get("XDG_CACHE_HOME") or home / ".cache")
    hub = Path(given.get("HF_HOME") or caches / "huggingface") / "hub"
    try:
        return any(path.name.startswith("models--") for path in hub.iterdir())
    except OSError:
        return False


def execute(command: Sequence[str], env: Mapping[str, str]) -> int:
    """Replace this process with the command; returns an exit code, after a message, only if that is impossible."""
    for ignored in ("SIGPIPE", "SIGXFSZ", "SIGXFZ"):  # Python ignores them, and the command would inherit that
        if hasattr(signal, ignored):
            signal.signal(getattr(signal, ignored), signal.SIG_DFL)
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execvpe(command[0], list(command), dict(env))  # noqa: S606
    except (OSError, ValueError) as error:  # ValueError: an empty name, or one with a null character
        from prebake.adopt.unstartable import EMPTY, why_unstartable

        print(f"prebake: error: {command[0] or EMPTY}: {why_unstartable(command[0], error)}", file=sys.stderr)
        return NOT_FOUND if isinstance(error, (FileNotFoundError, NotADirectoryError, ValueError)) else NOT_EXECUTABLE


def inherited() -> dict[str, str]:
    """The environment that this process was started with: without what Python's start has added.

    In the C locale, Python sets `LC_CTYPE` (PEP 538), which other programs would inherit.
    """
    found = dict(os.environ)
    try:
        at_start = Path("/proc/self/environ").read_bytes().split(b"\0")
    except OSError:
        return found
    if "LC_CTYPE" in found and not any(entry.startswith(b"LC_CTYPE=") for entry in at_start):
        del found["LC_CTYPE"]
    return found
