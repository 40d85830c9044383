"""Rules about the process in the image: its user, its files, its packages, and calls of the hub."""

from __future__ import annotations

import posixpath
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from prebake_build.images.checks.data import matches
from prebake_build.images.checks.findings import Finding, Subject, by_layer, paths, total
from prebake_build.images.contents import Contents, Entry

ACCOUNTS = ("etc/passwd", "etc/group")
_ROOT = ("", "root", "0")


@dataclass(frozen=True, slots=True)
class User:
    """Who the process runs as."""

    uid: int
    gids: frozenset[int]

    def may(self, entry: Entry, bit: int) -> bool:
        """Whether the file's mode allows `bit`: 4 to read, 1 to enter a folder."""
        if self.uid == 0:
            return True
        shift = 6 if entry.uid == self.uid else 3 if entry.gid in self.gids else 0
        return bool(entry.mode >> shift & bit)


def find_user(subject: Subject) -> User | None:
    """The user of the configuration; None if the image's accounts do not have it."""
    name, _, group = subject.image.config.user.partition(":")
    if name in _ROOT:
        return User(0, frozenset([0]))
    passwd, groups = (_accounts(subject.contents, path) for path in ACCOUNTS)
    record = next((fields for fields in passwd if len(fields) > 3 and name in (fields[0], fields[2])), None)
    if not name.isdecimal() and record is None:
        return None
    uid = int(name) if name.isdecimal() else int(record[2]) if record and record[2].isdecimal() else -1
    gids = {int(record[3])} if record and record[3].isdecimal() else {0}
    if group:
        found = next((fields[2] for fields in groups if len(fields) > 2 and fields[0] == group), group)
        gids = {int(found)} if found.isdecimal() else set()
    elif record:
        gids |= {int(fields[2]) for fields in groups
                 if len(fields) > 3 and fields[2].isdecimal() and record[0] in fields[3].split(",")}  # fmt: skip
    return User(uid, frozenset(gids))


def _accounts(contents: Contents, path: str) -> list[list[str]]:
    found = contents.resolve(path)
    text = found.text.decode("utf-8", "replace") if found else ""
    return [line.split(":") for line in text.splitlines()]


def root_user(subject: Subject) -> Iterator[Finding]:
    """Root, or a user whose number Kubernetes cannot know."""
    user = subject.image.config.user
    name = user.partition(":")[0]
    if not subject.runs:
        return
    if name in _ROOT:
        yield Finding(
            rule="root-user",
            message="the process runs as root",
            mend="add USER 65532:65532 and give the files that it must read mode 0644, folders 0755",
        )
    elif not name.isdecimal():
        yield Finding(
            rule="root-user",
            message=f"the user {name} is a name: Kubernetes' runAsNonRoot refuses it, as it cannot tell who that is",
            mend="write its number: USER 65532:65532",
        )
    elif int(name) == 0:
        yield Finding(rule="root-user", message="the process runs as root", mend="add USER 65532:65532")


def unreadable(subject: Subject) -> Iterator[Finding]:
    """Weights and files beside them that the process cannot read, or whose folders it cannot enter."""
    user = find_user(subject)
    if user is None or not subject.runs:
        return
    folders = {posixpath.dirname(path) for path in subject.weights}
    refused = []
    for path, entry in subject.contents.files.items():
        if entry.kind != "file" or posixpath.dirname(path) not in folders:
            continue
        if not user.may(entry, stat.S_IROTH) or _closed(subject.contents, path, user):
            refused.append(entry)
    for layer, files in by_layer(refused).items():
        closed = _closed(subject.contents, files[0].path, user)
        why = (
            f"folder /{closed.path} has mode {closed.mode & 0o7777:04o}"
            if closed
            else f"mode {files[0].mode & 0o7777:04o}"
        )
        yield Finding(
            rule="unreadable", layer=layer, bytes=total(files), paths=paths(files),
            message=f"user {user.uid} cannot read files of the model ({why}, owner {(closed or files[0]).uid})",
            mend="COPY --chmod=0755 the folder, or chmod -R a+rX it in the stage that makes it, outside of /root",
        )  # fmt: skip


def _closed(contents: Contents, path: str, user: User) -> Entry | None:
    """The first folder above a path that the user cannot enter."""
    parts = path.split("/")[:-1]
    for end in range(1, len(parts) + 1):
        folder = contents.files.get("/".join(parts[:end]))
        if folder is not None and folder.kind == "folder" and not user.may(folder, stat.S_IXOTH):
            return folder
    return None


def gpu_packages(subject: Subject) -> Iterator[Finding]:
    """Libraries for GPUs in an image that names none."""
    if set(subject.rules.gpu_variables) & set(subject.image.config.environment):
        return
    found = [
        entry for path, entry in subject.contents.files.items()
        if entry.kind == "file" and matches(path, subject.rules.gpu_paths)
    ]  # fmt: skip
    for layer, files in by_layer(found).items():
        if total(files) >= subject.rules.smallest:
            yield Finding(
                rule="gpu-packages", layer=layer, bytes=total(files), paths=paths(files),
                message=f"{len(files):,} files of GPU libraries, which a CPU does not use",
                mend="install torch from https://download.pytorch.org/whl/cpu (--extra-index-url); for a GPU image, "
                "pass --gpu",
            )  # fmt: skip


def hub_calls(subject: Subject) -> Iterator[Finding]:
    """A library that asks the hub although the weights are in the image."""
    environment = subject.image.config.environment
    for package, variable in subject.rules.hub.items():
        there = any(f"/{package}/__init__.py" in f"/{path}" and "-packages/" in path for path in subject.contents.files)
        on = environment.get(variable, "").upper() in ("1", "TRUE", "YES", "ON")
        if subject.runs and subject.weights and there and not on:
            yield Finding(
                rule="hub-calls",
                message=f"{package} may call the hub at start though the weights are here: {variable} is not set",
                mend=f"add ENV {variable}=1",
            )
