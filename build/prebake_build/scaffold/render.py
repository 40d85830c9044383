"""The text of the files, from the templates and a project's settings."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Final

from prebake.startup.compiled import LIST
from prebake_build.scaffold.marker import mark
from prebake_build.scaffold.settings import Settings

DOCKERFILE: Final = "Dockerfile"
BAKE_FILE: Final = "docker-bake.hcl"
IGNORE_FILE: Final = ".dockerignore"
SNAPSHOT_FILE: Final = "docker-bake.override.hcl"
TORCH_INDEX: Final = "https://download.pytorch.org/whl/cpu"

_PLACEHOLDER = re.compile(r"@\{(\w+)\}")
_RUN = ("/opt/prebake/bin/prebake", "run", "--")
"""The entry point of the Dockerfile."""
_RESTORE = ("/opt/prebake/libexec/prebake/prebake-restore", "/snapshot")
_PROBE = ("/opt/prebake/bin/python", "-SEB", "/opt/prebake/probe.py")


def render(settings: Settings) -> dict[str, str]:
    """File name → text."""
    ignore = "dockerignore.package" if settings.options.package else "dockerignore.code"
    texts = {
        DOCKERFILE: _filled("Dockerfile", settings, _dockerfile(settings)),
        BAKE_FILE: _filled("docker-bake.hcl", settings, _bake_file(settings)),
        IGNORE_FILE: _filled(ignore, settings, {"allowed": _allowed(settings), "ignored": _ignored(settings)}),
    }
    if settings.options.snapshot:
        texts[SNAPSHOT_FILE] = _filled(SNAPSHOT_FILE, settings, _snapshot(settings))
    return texts


def _snapshot(settings: Settings) -> dict[str, str]:
    """What the dump starts, and what starts each container: the same words."""
    entry = _in_template(shlex.join([*_RUN, *settings.command.words]))
    return {
        "entry": entry,
        "rehearse": _rehearse(settings, entry),
        "restore": _words((*_RESTORE, *_RUN)),
        "command": _in_template(_words(settings.command.words)),
    }


def _rehearse(settings: Settings, entry: str) -> str:
    """The lines that restore the snapshot once, as a test, and list what to read ahead; none without a port."""
    if settings.command.port is None:
        return ""
    ready = f"--ready {settings.ready} " if settings.ready else ""
    return f"     && prebake snapshot --rehearse /dumped/snapshot {ready}-- \\\n          {entry} \\\n"


def _in_template(text: str) -> str:
    """The text in a here-document of HCL, and then of a Dockerfile."""
    return text.replace("${", "$${").replace("%{", "%%{")


def _filled(template: str, settings: Settings, values: Mapping[str, str]) -> str:
    """The template with its placeholders `@{name}` replaced: shell, Dockerfile and HCL use the dollar."""
    text = (files("prebake_build.scaffold") / "templates" / template).read_text(encoding="utf-8")
    common = {
        "written": settings.options.written,
        "marker": "@{marker}",
        "base_image": f"python:3.{settings.python}-slim-bookworm",
    }
    known = {**common, **values}
    filled = _PLACEHOLDER.sub(lambda match: known[match[1]], text).rstrip()
    return mark(f"{filled}\n", "@{marker}")


def _dockerfile(settings: Settings) -> dict[str, str]:
    package = settings.options.package
    return {
        "constraints": f"{_CONSTRAINED}{settings.constraints}\n" if settings.constraints else "",
        "unconstrained": " PIP_CONSTRAINT=" if settings.constraints else "",
        "requirements": _requirements(settings),
        "build_install": _run(_PREBAKE, _WHEELS, *_constrained(settings), "pip install --no-cache-dir $PREBAKE_BUILD"),
        "project": f"/project/{package}" if package else "/project",
        "models_file": settings.options.models,
        "package": _package(settings, package) if package else "",
        "install": _install(settings),
        "allow": _allow(settings),
        "served": _served(settings),
        "command": _words(settings.command.words),
        "code": "" if package else _code(settings),
    }


def _run(*parts: str) -> str:
    """A RUN instruction of mounts and commands, in lines of at most 120 characters where that is possible."""
    lines = ["RUN"]
    for part in parts:
        if len(lines[-1]) + len(part) + 1 > (120 if part is parts[-1] else 118):
            lines.append(f" {part}" if part.startswith("&&") else f"    {part}")
        else:
            lines[-1] += f" {part}"
    return " \\\n".join(lines)


def _constrained(settings: Settings) -> list[str]:
    return ["--mount=type=bind,source=${CONSTRAINTS},target=/constraints.txt"] if settings.constraints else []


def _code(settings: Settings) -> str:
    """The stage with the project's code; sources of the form path:FOLDER are links to the baked models in it."""
    places = _places(settings)
    links = [
        f"&& mkdir -p /app/{PurePosixPath(place).parent} && ln -sfn /models/{name} /app/{place}"
        for name, place in places.items()
        if not any(other.startswith(f"{place}/") for other in places.values())  # a folder of others can't be a link
    ]
    copy = "cp -R /project/. /app && chmod -R u=rwX,go=rX /app"
    return "# code: yours, the last layer: a change of it pulls and unpacks nothing else\nFROM base AS code\n" + _run(
        "--mount=type=bind,target=/project", copy, *links, '&& eval "$SEAL"'
    )


_PREBAKE = "--mount=type=bind,from=prebake,target=/prebake,rw"
_WHEELS = "--mount=type=bind,from=wheels,target=/wheels"
_CACHE = "--mount=type=cache,target=/root/.cache,id=prebake-pip"
_CONSTRAINED = "ARG PIP_CONSTRAINT=/constraints.txt UV_CONSTRAINT=/constraints.txt CONSTRAINTS="
_UV = "/root/.cache/uv-tool"


def _requirements(settings: Settings) -> str:
    """The instruction that installs the project's requirements."""
    requirements = settings.requirements
    mounts = [f"--mount=type=bind,source={name},target=/requirements/{name}" for name in requirements.files]
    install = [f"pip install -r /requirements/{requirements.files[0]}"]
    if requirements.kind != "pip":
        install = [f"pip install --quiet --target {_UV} uv", *_uv(settings)]
    return _run(*mounts, *_constrained(settings), _WHEELS, _CACHE, *install, '&& eval "$SEAL"')


def _uv(settings: Settings) -> list[str]:
    """The command of uv: it alone installs what `uv.lock` or `pyproject.toml` lists without the project itself."""
    requirements = settings.requirements
    chosen = [f"--extra {name}" for name in requirements.extras] + [f"--group {name}" for name in requirements.groups]
    if requirements.kind == "uv":
        return [f"&& UV_FIND_LINKS=/wheels UV_PROJECT_ENVIRONMENT=/opt/prebake {_UV}/bin/uv sync --frozen --no-dev",
                "--no-install-project --project /requirements", *chosen]  # fmt: skip
    return [f'&& UV_FIND_LINKS=/wheels UV_EXTRA_INDEX_URL="$PIP_EXTRA_INDEX_URL" {_UV}/bin/uv pip install',
            "--python /opt/prebake --index-strategy unsafe-best-match -r /requirements/pyproject.toml",
            *(part.replace("--group ", "--group /requirements/pyproject.toml:") for part in chosen)]  # fmt: skip


def _package(settings: Settings, folder: str) -> str:
    source = f"--mount=type=bind,source={folder},target=/source,rw"
    wheel = "pip wheel --no-deps --no-cache-dir --wheel-dir /dist /source"
    return f"FROM base AS package\n{_run(source, *_constrained(settings), _WHEELS, wheel)}\n"


def _install(settings: Settings) -> str:
    """The instruction that installs Prebake, and the project's package."""
    listed = [f"--mount=type=bind,source={settings.compiled},target=/{LIST}"] if settings.compiled else []
    package = settings.options.package
    compiled = f" /{LIST}{' --all' * (package is not None)}" if listed else ""
    prepare = f'&& python3 -B -m prebake.startup.prepare /opt/prebake{compiled} && eval "$SEAL"'
    if package is None:
        return _run(_PREBAKE, _WHEELS, *listed, f"pip install --no-cache-dir $PREBAKE {prepare}")
    wheel = "--mount=type=bind,from=package,source=/dist,target=/dist"
    return _run(_PREBAKE, _WHEELS, wheel, *listed, "pip install --no-cache-dir $PREBAKE /dist/*.whl", prepare)


def _allow(settings: Settings) -> str:
    """The variable that lets the service use the modules that models of family torch name."""
    modules = {model.class_.partition(":")[0] for model in settings.models if model.family == "torch" and model.class_}
    return f" \\\n    PREBAKE_ALLOW={','.join(sorted(modules))}" if modules else ""


def _served(settings: Settings) -> str:
    """Port and health check."""
    port, ready = settings.command.port, settings.ready
    if port is None:
        return "# This service has no port. If yours has one: EXPOSE and HEALTHCHECK, or `port` in prebake.toml"
    if ready is None:
        probe = [*_PROBE, "open", "--url", f"http://127.0.0.1:{port}"]
    elif (ready, port) == ("/readyz", 8000):
        probe = [*_PROBE, "ready"]
    else:
        probe = [*_PROBE, "ready", "--url", f"http://127.0.0.1:{port}{ready}"]
    return (
        f"EXPOSE {port}\n"
        "HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --start-interval=1s --retries=3 \\\n"
        f"  CMD {_words(probe)}"
    )


def _bake_file(settings: Settings) -> dict[str, str]:
    package = settings.options.package is not None
    stages, copy = ('["runtime"]', "") if package else ('["runtime", "code"]', '["COPY --link --from=code /app /app"]')
    layers = "listed, weights" if package else f"weights, listed, {copy}"
    if settings.compiles_own:
        layers = f'{layers}, ["COPY --link --from=compiled /compiled /"]'
    return {
        "models": ",".join(model.name for model in settings.models),
        "models_file": settings.options.models,
        "shards": ", ".join(f'"{name}" = {count}' for name, count in sorted(settings.shards.items())),
        "version": settings.prebake,
        "torch_index": "" if settings.requirements.kind == "uv" else TORCH_INDEX,
        "image": settings.name,
        "project_version": settings.version,
        "checkpoints": f"./{settings.checkpoints}" if _places(settings) else "",
        "stages": stages,
        "code": f"{copy}, " if copy else "",
        "record": _hcl(_record(settings)),
        "keep": " ".join(settings.keep),
        "layers": layers,
        "compiled": f"{_compiled(settings, copy)}, " if settings.compiles_own else "",
    }


def _compiled(settings: Settings, copy: str) -> str:
    """The stage with what numba compiles of the project's own modules: lines of a Dockerfile, as lists of HCL."""
    prepare = f"python3 -B -m prebake.startup.prepare /compiled/opt/prebake /app/{settings.compiled} --own"
    run = f"RUN --network=none mkdir /compiled && {prepare} && find /compiled -exec touch --date=@0 {{}} +"
    return f'["FROM runtime AS compiled", "USER 0:0"], {copy}, [{json.dumps(run)}]'


def _record(settings: Settings) -> str:
    """The shell command that starts the service and records what it reads.

    A service that does not start in the build, where it has no network and no data, has its models' reads recorded.
    """
    check = "prebake check --warn-only --record-reads /listed/opt/prebake/readahead"
    words = settings.command.words
    if Path(words[0]).name == "prebake":  # Prebake's own service: the check of the models has it answer once
        return check.replace(" --warn-only", "")
    ready = f"--ready {settings.ready}" if settings.ready else "--until-exit" if settings.command.port is None else ""
    start = " ".join(filter(None, [check, ready, "--timeout 300", "--", shlex.join(words)]))
    return f"{{ {start} || {check} --models-only; }}"


def _hcl(text: str) -> str:
    """The text in a string of HCL."""
    return json.dumps(text, ensure_ascii=False)[1:-1].replace("${", "$${").replace("%{", "%%{")


def _places(settings: Settings) -> dict[str, str]:
    """Model → the folder of its source, for sources of the form path:FOLDER and path:FOLDER/…."""
    places = {
        model.name: str(PurePosixPath(model.source.removeprefix("path:")))
        for model in settings.models
        if model.source.startswith("path:")
    }
    return {name: place for name, place in places.items() if place.split("/")[0] == settings.checkpoints}


def _ignored(settings: Settings) -> str:
    """Lines of the ignore list with the sources: the build has them from another context."""
    return "\n".join(f"/{place}" for place in sorted({*_places(settings).values()})) or "/checkpoints"


def _allowed(settings: Settings) -> str:
    """Lines of an allow-list with everything that the Dockerfile takes from the project."""
    names = [*settings.requirements.files, *filter(None, (settings.constraints, settings.compiled))]
    return "\n".join(f"!{name}" for name in sorted({*names, settings.options.package or "."}))


def _words(words: tuple[str, ...] | list[str]) -> str:
    return json.dumps(list(words), ensure_ascii=False)
