"""A hub with the repositories that the examples load, and an index with the wheels that no reachable index has.

    python -m helpers.example_hub --write FOLDER                  write the repositories into FOLDER/OWNER/NAME
    python -m helpers.example_hub --serve PORT [--seconds N]      serve them; HF_ENDPOINT=http://127.0.0.1:PORT
    python -m helpers.example_hub --serve PORT --wheels FOLDER    and /simple/, for pip's --extra-index-url: the wheels
                                                                  in FOLDER, and a torchaudio for the CPU

Run it in `tests/`, with `runtime/` and `build/` on PYTHONPATH. It ends by itself after an hour, or after N seconds.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType

from helpers import ROOT
from helpers.cpu_wheels import write_torchaudio
from helpers.example_environment import environment, variables
from helpers.example_models import REPOSITORIES
from helpers.hub_server import Answer, HubServer, Request, Server


def write_repositories(folder: Path, python: Path, names: Iterable[str] = tuple(REPOSITORIES)) -> dict[str, Path]:
    """Write the repositories that are not there yet, by an example's own Python; name → folder."""
    folders = {name: folder / name for name in names}
    for name, target in folders.items():
        if target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as scratch:
            written = Path(scratch) / "repository"
            command = [str(python), "-W", "ignore", "-m", "helpers.example_models", name, str(written)]
            path = f"{ROOT / 'tests'}:{ROOT / 'build'}"
            subprocess.run(command, env=variables(PYTHONPATH=path, HF_HUB_OFFLINE="1"), check=True, timeout=300)
            written.rename(target)
    return folders


class ExampleHub(Server):
    """A hub with several repositories, each with the one commit that its files give it; `main` is that commit."""

    def __init__(self, folders: Mapping[str, Path], *, wheels: Iterable[Path] = (), port: int = 0) -> None:
        self.hubs = {name: _hub(name, folder) for name, folder in folders.items()}
        self.wheels = {path.name: path for path in wheels}
        super().__init__(self._dispatch, port=port)

    @property
    def commits(self) -> dict[str, str]:
        return {name: hub.commit for name, hub in self.hubs.items()}

    def __enter__(self) -> ExampleHub:
        for hub in self.hubs.values():
            hub.__enter__()
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        for hub in self.hubs.values():
            hub.__exit__(kind, error, trace)

    def _dispatch(self, request: Request) -> Answer:
        if request.path.startswith(("/simple/", "/wheels/")):
            return self._index(request.path)
        path = request.path.removeprefix("/api/models")
        for name, hub in self.hubs.items():
            if path == f"/{name}" or path.startswith(f"/{name}/"):
                return hub._answer(request)
        # any of them can say that there is no such repository
        return next((hub._answer(request) for hub in self.hubs.values()), Answer(status=404))

    def _index(self, path: str) -> Answer:
        """PEP 503: a page of links for each project that has a wheel here."""
        kind, _, name = path.strip("/").partition("/")
        if kind == "wheels":
            wheel = self.wheels.get(name)
            return Answer(status=404) if wheel is None else Answer(body=wheel.read_bytes())
        links = [f'<a href="/wheels/{wheel}">{wheel}</a>' for wheel in self.wheels if wheel.split("-")[0] == name]
        if not links:
            return Answer(status=404)
        return Answer(headers={"Content-Type": "text/html"}, body="\n".join(links).encode())


def _hub(name: str, folder: Path) -> HubServer:
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    commit = hashlib.sha1(usedforsecurity=False)
    for path in sorted(files):
        commit.update(path.encode() + b"\0" + hashlib.sha1(files[path], usedforsecurity=False).digest())
    return HubServer(files, repo=name, commit=commit.hexdigest())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="where to keep the repositories; made if missing")
    parser.add_argument("--serve", type=int, metavar="PORT", help="serve them on this port of the loopback interface")
    parser.add_argument("--wheels", type=Path, metavar="FOLDER", help="serve these wheels and a torchaudio as an index")
    parser.add_argument("--seconds", type=float, default=3600, help="how long to serve")
    given = parser.parse_args(arguments)
    if given.write is None and given.serve is None:
        parser.error("give --write FOLDER, --serve PORT, or both")
    with tempfile.TemporaryDirectory() as scratch:
        folders = write_repositories(given.write or Path(scratch), environment(Path(scratch) / "environment"))
        wheels = [*sorted(given.wheels.glob("*.whl")), write_torchaudio(Path(scratch))] if given.wheels else []
        if given.serve is None:
            return
        with ExampleHub(folders, wheels=wheels, port=given.serve) as hub:
            print(f"HF_ENDPOINT={hub.url}", flush=True)
            try:
                threading.Event().wait(given.seconds)
            except KeyboardInterrupt:
                sys.exit(130)


if __name__ == "__main__":
    main()
