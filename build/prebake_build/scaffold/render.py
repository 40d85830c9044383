"""The text of the files, from the templates and a project's settings."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Final

from prebake_build.scaffold.marker import mark
from prebake_build.scaffold.settings import Settings

DOCKERFILE: Final = "Dockerfile"
BAKE_FILE: Final = "docker-bake.hcl"
IGNORE_FILE: Final = ".dockerignore"
TORCH_INDEX: Final = "https://download.pytorch.org/whl/cpu"

_PIP = """\
    --mount=type=bind,from=wheels,target=/wheels --mount=type=cache,target=/root/.cache/pip,id=prebake-pip \\
"""
_PLACEHOLDER = re.compile(r"@\{(\w+)\}")
_PROBE = ("/opt/prebake/bin/python", "-SEB", "/opt/prebake/probe.py")


def render(settings: Settings) -> dict[str, str]:
    """File name → text."""
    ignore = "dockerignore.package" if settings.options.package else "dockerignore.code"
    return {
        DOCKERFILE: _filled("Dockerfile", settings, _dockerfile(settings)),
        BAKE_FILE: _filled("docker-bake.hcl", settings, _bake_file(settings)),
        IGNORE_FILE: _filled(ignore, settings, {"allowed": _allowed(settings), "checkpoints": settings.checkpoints}),
    }


def _filled(template: str, settings: Settings, values: Mapping[str, str]) -> str:
    """The template with its placeholders `@{name}` replaced: shell, Dockerfile and HCL use the dollar."""
    text = files("prebake_build.scaffold").joinpath("templates", template).read_text(encoding="utf-8")
    common = {
        "written": settings.options.written,
        "marker": "@{marker}",
        "base_image": f"python:3.{settings.python}-slim-bookworm",
    }
    known = {**common, **values}
    return mark(_PLACEHOLDER.sub(lambda match: known[match[1]], text), "@{marker}")


def _dockerfile(settings: Settings) -> dict[str, str]:
    package = settings.options.package
    return {
        "requirements": _requirements(settings),
        "project": f"/project/{package}" if package else "/project",
        "checkpoints": settings.checkpoints,
        "models_file": settings.options.models,
        "package": _package(package) if package else "",
        "package_mount": " --mount=type=bind,from=package,source=/dist,target=/dist" if package else "",
        "package_install": " && pip install --no-deps --no-index --no-compile /dist/*.whl && pip check" if package else "",
        "allow": _allow(settings),
        "served": _served(settings),
        "command": _words(settings.command.words),
        "code": "" if package else _CODE,
    }


_CODE = """
# code: yours, the last layer: a change of it pulls and unpacks nothing else
FROM base AS code
COPY . /app
RUN chmod -R u=rwX,go=rX /app && eval "$SEAL"
"""


def _requirements(settings: Settings) -> str:
    """The stage `dependencies` up to its install."""
    requirements, lines = settings.requirements, ["# dependencies: the packages that your code imports"]
    constraint = ""
    if requirements.kind == "pyproject":
        lines[:0] = _extracted(settings)
    lines.append("FROM base AS dependencies")
    if requirements.kind == "uv":
        return "\n".join([*lines, _uv(settings)])
    lines.append("ARG TORCH_INDEX")
    mounts = [_mount(name) for name in requirements.files]
    if requirements.kind == "pyproject":
        mounts = ["--mount=type=bind,from=requirements,source=/requirements.txt,target=/requirements/requirements.txt"]
    if settings.constraints:
        lines[-1] += f" CONSTRAINTS={settings.constraints}"
        mounts.append("--mount=type=bind,source=${CONSTRAINTS},target=/constraints.txt")
        constraint = " --constraint /constraints.txt"
    named = "requirements.txt" if requirements.kind == "pyproject" else requirements.files[0]
    lines += [f"{'RUN' if number == 0 else '   '} {mount} \\" for number, mount in enumerate(mounts)]
    lines.append(_PIP.rstrip("\n"))
    lines.append('    pip install --no-compile ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"}' + f"{constraint} \\")
    lines.append(f"      --requirement /requirements/{named} && eval \"$SEAL\"")
    return "\n".join(lines)


def _mount(name: str) -> str:
    return f"--mount=type=bind,source={name},target=/requirements/{name}"


def _extracted(settings: Settings) -> list[str]:
    """A stage with the dependencies of `pyproject.toml` alone."""
    parts = ['p["project"].get("dependencies", [])']
    parts += [f'p["project"]["optional-dependencies"]["{name}"]' for name in settings.requirements.extras]
    parts += [f'p["dependency-groups"]["{name}"]' for name in settings.requirements.groups]
    printed = ", ".join(f"*{part}" for part in parts)
    loads = "import tomllib" if settings.python >= 11 else "from pip._vendor import tomli as tomllib"
    path = "" if settings.python >= 11 else "PATH=${PATH#*:} "
    return [
        "# requirements: of pyproject.toml the dependencies alone, so that its other changes install nothing again",
        "FROM base AS requirements",
        "RUN --mount=type=bind,source=pyproject.toml,target=/pyproject.toml \\",
        f"    {path}python3 -c '{loads}; p = tomllib.load(open(\"/pyproject.toml\", \"rb\")); "
        f"print({printed}, sep=\"\\n\")' > /requirements.txt",
    ]


def _uv(settings: Settings) -> str:
    chosen = "".join(
        f" {option} {value}"
        for option, values in (("--extra", settings.requirements.extras), ("--group", settings.requirements.groups))
        for value in values
    )
    return f"""\
RUN --mount=type=bind,source=pyproject.toml,target=/project/pyproject.toml \\
    --mount=type=bind,source=uv.lock,target=/project/uv.lock --mount=type=bind,from=wheels,target=/wheels \\
    --mount=type=cache,target=/root/.cache,id=prebake-pip pip install --quiet --target /tmp/uv uv \\
 && UV_PROJECT_ENVIRONMENT=/opt/prebake UV_LINK_MODE=copy UV_FIND_LINKS=/wheels /tmp/uv/bin/uv sync --frozen --no-dev \\
      --no-install-project --no-python-downloads --project /project{chosen} && rm -r /tmp/uv && eval "$SEAL\""""


def _package(folder: str) -> str:
    return f"""\
# package: the wheel of your code
FROM base AS package
RUN --mount=type=bind,source={folder},target=/source,rw --mount=type=bind,from=wheels,target=/wheels \\
    --mount=type=cache,target=/root/.cache/pip,id=prebake-pip pip wheel --no-deps --wheel-dir /dist /source
"""


def _allow(settings: Settings) -> str:
    """The variable that lets the service use the modules that models of family torch name."""
    modules = {
        model.class_.partition(":")[0] for model in settings.models if model.family == "torch" and model.class_
    }
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
    return {
        "models": ",".join(model.name for model in settings.models),
        "models_file": settings.options.models,
        "version": settings.prebake,
        "torch_index": "" if settings.requirements.kind == "uv" else TORCH_INDEX,
        "image": settings.name,
        "project_version": settings.version,
        "checkpoints": f"./{settings.checkpoints}" if _has_checkpoints(settings) else "",
        "stages": stages,
        "code": f"{copy}, " if copy else "",
        "layers": "listed, weights" if package else f"weights, listed, {copy}",
    }


def _has_checkpoints(settings: Settings) -> bool:
    return any(model.source.startswith(f"path:{settings.checkpoints}/") for model in settings.models)


def _allowed(settings: Settings) -> str:
    """Lines of an allow-list with everything that the Dockerfile takes from the project."""
    names = [*settings.requirements.files, *([settings.constraints] if settings.constraints else ())]
    return "\n".join(f"!{name}" for name in sorted({*names, settings.options.package or "."}))


def _words(words: tuple[str, ...] | list[str]) -> str:
    return json.dumps(list(words), ensure_ascii=False)
