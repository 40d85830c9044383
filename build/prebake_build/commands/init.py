"""`prebake init`: writes Dockerfile, docker-bake.hcl and .dockerignore for the project in a folder."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from prebake.commands.arguments import HelpFormatter
from prebake.errors import ConfigError
from prebake_build.files.atomic import write_text
from prebake_build.scaffold.marker import compare, written_by
from prebake_build.scaffold.render import DOCKERFILE, render
from prebake_build.scaffold.settings import Options, Settings, find_settings

if TYPE_CHECKING:
    from prebake_build.commands import Commands

_EPILOG = """\
examples:
  prebake init -- uvicorn app:app --host 0.0.0.0 --port 8000
  prebake init                          the command of prebake.toml, Procfile, or the only application file
  prebake init --print                  write nothing; print the files
  prebake init --check | patch -p0      apply what a newer Prebake would write

exit codes: 0 written, or no drift; 1 a file exists already, or drift; 2 wrong use or configuration
"""
_STATES = {
    "current": "{name} is up to date.",
    "edited": "{name} has changes of yours; its template is the same.",
    "outdated": "{name} has drifted: init writes something else now. The diff applies with `patch -p0`.",
    "outdated and edited": "{name} has drifted: init writes something else now, and you changed the file: the diff "
    "takes your changes back as well.",
    "foreign": "{name} was not written by prebake init: the diff turns it into what init writes.",
}


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "init",
        help="write Dockerfile and docker-bake.hcl for a project",
        description="Write Dockerfile, docker-bake.hcl and .dockerignore for the project in this folder: an image with "
        "its packages, a layer for each model of models.toml, and its code, started by `prebake run`. No file is "
        "overwritten.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
    )
    add_options(parser)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--print", action="store_true", help="write nothing; print the files")
    mode.add_argument(
        "--check",
        action="store_true",
        help="write nothing; compare the files with what init writes now, by the options that they were written with",
    )
    parser.set_defaults(run=run)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that decide what is written."""
    parser.add_argument("words", metavar="COMMAND", nargs="*", help="what starts the service, after --")
    parser.add_argument("--name", help="the image's name (default: the project's, else the folder's)")
    parser.add_argument(
        "--python", metavar="3.X", help="default: .python-version, requires-python, else this interpreter's"
    )
    parser.add_argument("--models", metavar="FILE", default="models.toml", help="default: models.toml")
    parser.add_argument("--requirements", metavar="FILE", help="default: uv.lock, requirements.txt, or pyproject.toml")
    parser.add_argument("--extra", action="append", default=[], metavar="NAME", help="optional dependencies, too")
    parser.add_argument("--group", action="append", default=[], metavar="NAME", help="a dependency group, too")
    parser.add_argument(
        "--package", metavar="DIR", help="install the package in this folder, instead of copying the project's code"
    )
    parser.add_argument("--port", type=_port, metavar="N", help="default: the command's, else 8000 if it serves")
    parser.add_argument("--ready", metavar="PATH", help="answers once the service is ready (default: of prebake.toml)")
    parser.add_argument("--snapshot", action="store_true",
                        help="also write docker-bake.override.hcl, with a target `snapshot`: the image and its started "
                        "service")  # fmt: skip


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise ValueError(text)
    return int(text)


_port.__name__ = "port between 1 and 65535"  # argparse names it in "invalid … value"


def options_of(args: argparse.Namespace) -> Options:
    """The options as parsed."""
    return Options(
        command=tuple(args.words), name=args.name, python=args.python, models=args.models,
        requirements=args.requirements, extras=tuple(args.extra), groups=tuple(args.group), package=args.package,
        port=args.port, ready=args.ready, snapshot=args.snapshot,
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    folder = Path()
    given = options_of(args)
    if args.check:
        return check(folder, given)
    settings = find_settings(folder, given)
    texts = render(settings)
    if args.print:
        for name, text in texts.items():
            print(f"==> {name} <==\n{text}")
        return 0
    return write(folder, texts, settings)


def write(folder: Path, texts: dict[str, str], settings: Settings) -> int:
    """Write the files that are missing. If one exists, writes none and prints the differences."""
    there = [name for name in texts if (folder / name).exists() and _text(folder / name) != texts[name]]
    for name in there:
        print(f"{name} exists already; init overwrites nothing:", file=sys.stderr)
        print(compare(name, _text(folder / name), texts[name]).diff, end="")
    if there:
        print("No file was written. Move them away, or apply the diff with `patch -p0`.", file=sys.stderr)
        return 1
    for name, text in texts.items():
        if not (folder / name).exists():
            write_text(folder / name, text, new=True)
            print(f"Wrote {name}.", file=sys.stderr)
    for note in settings.notes:
        print(f"Note: {note}.", file=sys.stderr)
    print(f"Next: `prebake lock` pins the models, `{_build(folder)}` builds the image.", file=sys.stderr)
    return 0


def _build(folder: Path) -> str:
    """The command that builds the image. It names the checkout that this Prebake was installed from, if it was."""
    command = "docker buildx bake"
    checkout = _checkout()
    if checkout is None:
        return command
    if checkout.is_relative_to(folder.resolve()):
        return f"PREBAKE=./{shlex.quote(str(checkout.relative_to(folder.resolve())))} {command}"
    place = shlex.quote(str(checkout))
    return f"PREBAKE={place} {command} --allow=fs.read={place}"


def _checkout() -> Path | None:
    """The folder with `runtime` and `build` from which pip installed prebake-build (PEP 610); None if there is none."""
    try:
        address = json.loads(distribution("prebake-build").read_text("direct_url.json") or "{}").get("url", "")
    except (PackageNotFoundError, ValueError, AttributeError):
        return None
    parts = urlsplit(address)
    checkout = Path(unquote(parts.path)).parent
    there = all((checkout / name / "pyproject.toml").is_file() for name in ("runtime", "build"))
    return checkout if parts.scheme == "file" and there else None


def check(folder: Path, given: Options) -> int:
    """Compare the files with what init writes now; prints the differences. Returns 1 if there are any but edits."""
    dockerfile = folder / DOCKERFILE
    if given == Options() and dockerfile.exists():
        given = _recorded(_text(dockerfile))
    code = 0
    for name, text in render(find_settings(folder, given)).items():
        if not (folder / name).exists():
            print(f"{name} is missing: `prebake init` writes it.", file=sys.stderr)
            code = 1
            continue
        drift = compare(name, _text(folder / name), text)
        print(_STATES[drift.state].format(name=name), file=sys.stderr)
        if drift.state not in ("current", "edited"):
            print(drift.diff, end="")
            code = 1
    return code


def _recorded(text: str) -> Options:
    """The options that the Dockerfile was written with; none if init did not write it."""
    line = written_by(text)
    if line is None:
        return Options()
    parser = argparse.ArgumentParser(prog="prebake init", exit_on_error=False)
    add_options(parser)
    try:
        return options_of(parser.parse_args(shlex.split(line)[2:]))
    except (argparse.ArgumentError, ValueError, SystemExit) as error:
        raise ConfigError(f"{DOCKERFILE}: can't read its first line: {line}: {error}") from error


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")
