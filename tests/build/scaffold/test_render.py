"""What the templates become, for each kind of project: short, and with every property of the image."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from prebake.errors import ConfigError
from prebake_build.scaffold.render import render
from prebake_build.scaffold.settings import Options, Settings, find_settings

MODELS = '[models.caption]\nsource = "hf:org/blip"\n'
COMMAND = ("uvicorn", "app:app", "--host", "0.0.0.0")
REQUIREMENTS = {"requirements.txt": "fastapi\n"}
PYPROJECT = '[project]\nname = "My_Service"\nversion = "1.2"\nrequires-python = ">=3.12"\ndependencies = ["fastapi"]\n'


def found(folder: Path, files: dict[str, str], **options: object) -> Settings:
    for name, text in ({"models.toml": MODELS} | files).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    given = {"command": COMMAND, "python": "3.11"} | options
    return find_settings(folder, Options(**given))  # type: ignore[arg-type]


def rendered(folder: Path, files: dict[str, str], **options: object) -> dict[str, str]:
    return render(found(folder, files, **options))


def refused(folder: Path, files: dict[str, str], **options: object) -> str:
    with pytest.raises(ConfigError) as error:
        rendered(folder, files, **options)
    return str(error.value).replace(f"{folder}/", "")


KINDS: dict[str, tuple[dict[str, str], dict[str, object]]] = {
    "pip": (REQUIREMENTS, {}),
    "constraints": ({**REQUIREMENTS, "constraints.txt": "fastapi==1\n"}, {}),
    "pyproject": ({"pyproject.toml": PYPROJECT, "constraints.txt": ""}, {}),
    "uv": ({"pyproject.toml": PYPROJECT, "uv.lock": "version = 1\n"}, {}),
    "package": ({**REQUIREMENTS, "constraints.txt": "", "lib/pyproject.toml": PYPROJECT}, {"package": "lib"}),
    "worker": ({"requirements.txt": "torch\n"}, {"command": ("python", "worker.py")}),
    "numba": ({**REQUIREMENTS, "constraints.txt": "", "numba.txt": "librosa.sequence\n./filters:smooth(int64)\n"}, {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_dockerfile_and_bake_file_have_at_most_60_lines(tmp_path: Path, kind: str) -> None:
    files, options = KINDS[kind]
    texts = rendered(tmp_path, files, **options)
    lines = {name: len(text.splitlines()) for name, text in texts.items()}
    assert (lines["Dockerfile"] <= 60, lines["docker-bake.hcl"] <= 60) == (True, True), lines
    assert [text for text in texts.values() if "@{" in text or not text.endswith("\n") or text.endswith("\n\n")] == []


@pytest.mark.parametrize("kind", KINDS)
def test_every_property_of_the_image_is_there(tmp_path: Path, kind: str) -> None:
    files, options = KINDS[kind]
    text = rendered(tmp_path, files, **options)["Dockerfile"]
    for part in (
        "RUN --network=none --mount=type=bind,from=fetched", "type=secret,id=hf_token,env=HF_TOKEN", "USER 65532:65532",
        "HF_HUB_OFFLINE=1",
        "NUMBA_CACHE_DIR=/usr/tmp/numba", "PREBAKE_ROOT=/models", "PREBAKE_MEMO=/opt/prebake/memo",
        "--invalidation-mode",
        'ENTRYPOINT ["/opt/prebake/bin/prebake", "run", "--"]',
    ):  # fmt: skip
        assert part in text
    (fetched,) = re.findall(r"FROM builder AS fetched\n(.*?)FROM", text, re.DOTALL)
    (bake,) = re.findall(r"FROM builder AS bake\n(.*?)(?:#|FROM)", text, re.DOTALL)
    assert ("hf_token" in fetched, "hf_token" in bake) == (True, False)
    assert ("\nHEALTHCHECK" in text) == (kind != "worker")


def test_requirements_are_installed_as_their_kind_asks(tmp_path: Path) -> None:
    text = rendered(tmp_path, {"pyproject.toml": PYPROJECT})["Dockerfile"]
    assert "uv pip install \\\n    --python /opt/prebake" in text
    assert "-r /requirements/pyproject.toml" in text
    text = rendered(tmp_path, {"uv.lock": "version = 1\n"})["Dockerfile"]
    assert "uv sync --frozen --no-dev" in text


def test_a_project_is_known_by_its_metadata(tmp_path: Path) -> None:
    texts = rendered(tmp_path, {"pyproject.toml": PYPROJECT}, python=None)
    assert 'variable "IMAGE" { default = "my-service" }' in texts["docker-bake.hcl"]
    assert 'variable "VERSION" { default = "1.2" }' in texts["docker-bake.hcl"]
    assert re.search(r"ARG BASE_IMAGE=python:3\.1[234]-slim-bookworm", texts["Dockerfile"])


@pytest.mark.parametrize(
    ("files", "options", "probe"),
    [
        ({}, {}, '"open", "--url", "http://127.0.0.1:8000"]'),
        ({}, {"ready": "/health", "port": 9000}, '"ready", "--url", "http://127.0.0.1:9000/health"]'),
        ({"prebake.toml": 'ready = "http://localhost:8000/up"'}, {}, '"ready", "--url", "http://127.0.0.1:8000/up"]'),
        ({}, {"command": ("prebake", "serve")}, '"/opt/prebake/probe.py", "ready"]'),
    ],
)
def test_the_health_check_asks_what_the_service_declares(
    tmp_path: Path, files: dict[str, str], options: dict[str, object], probe: str
) -> None:
    assert probe in rendered(tmp_path, REQUIREMENTS | files, **options)["Dockerfile"]


def test_code_lies_above_the_weights_and_a_package_below(tmp_path: Path) -> None:
    code = rendered(tmp_path, REQUIREMENTS)["docker-bake.hcl"]
    assert '["FROM runtime"], weights, listed, ["COPY --link --from=code /app /app"])' in code
    package = rendered(tmp_path, {**REQUIREMENTS, "lib/pyproject.toml": PYPROJECT}, package="lib")
    assert '["FROM runtime"], listed, weights)' in package["docker-bake.hcl"]
    assert package[".dockerignore"].splitlines()[2:6] == ["*", "!lib", "!requirements.txt", "!models*.toml"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_image_has_the_slim_packages_and_nothing_of_the_stage_that_installs_them(tmp_path: Path, kind: str) -> None:
    files, options = KINDS[kind]
    texts = rendered(tmp_path, files, **options)
    (slim,) = re.findall(r"FROM dependencies AS slim\n(.*?)(?:#|FROM)", texts["Dockerfile"], re.DOTALL)
    assert slim == (
        "ARG SLIM SLIM_KEEP\nRUN --mount=from=builder,target=/b /b/opt/prebake/bin/python -m prebake_build.slimming "
        '/opt/prebake && eval "$SEAL"\n'
    )
    assert "FROM base AS runtime\nCOPY --link --from=slim /opt /opt\n" in texts["Dockerfile"]
    assert 'variable "SLIM" { default = "1" }' in texts["docker-bake.hcl"]
    assert "SLIM = SLIM, SLIM_KEEP = SLIM_KEEP" in texts["docker-bake.hcl"]


def test_what_prebake_toml_keeps_is_a_variable(tmp_path: Path) -> None:
    texts = rendered(tmp_path, {**REQUIREMENTS, "prebake.toml": 'keep = ["torch/include/*", "*/tests/*"]'})
    assert 'variable "SLIM_KEEP" { default = "torch/include/* */tests/*" }' in texts["docker-bake.hcl"]


def test_what_numba_compiles_of_packages_is_compiled_once_below_the_weights(tmp_path: Path) -> None:
    texts = rendered(tmp_path, {**REQUIREMENTS, "numba.txt": "librosa.sequence\n"})
    (install,) = re.findall(r"(RUN (?:(?!RUN).)*prebake\.startup\.prepare.*)", texts["Dockerfile"], re.DOTALL)
    assert install.startswith("RUN --mount=type=bind,from=prebake,target=/prebake,rw")
    assert "--mount=type=bind,source=numba.txt,target=/numba.txt" in install
    assert "prebake.startup.prepare /opt/prebake /numba.txt && eval" in install
    assert "compiled" not in texts["docker-bake.hcl"]
    without = rendered(tmp_path, {"numba.txt": "# nothing\n"})
    assert "numba.txt" not in without["Dockerfile"]


def test_what_numba_compiles_of_the_project_is_a_layer_above_its_code(tmp_path: Path) -> None:
    files = {**REQUIREMENTS, "sub/numba.txt": "./filters:smooth(int64)\n", "sub/models.toml": MODELS}
    texts = rendered(tmp_path, files, models="sub/models.toml")
    assert (
        'layers  = concat(["FROM runtime AS compiled", "USER 0:0"], ["COPY --link --from=code /app /app"], '
        '["RUN --network=none mkdir /compiled && python3 -B -m prebake.startup.prepare /compiled/opt/prebake '
        '/app/sub/numba.txt --own && find /compiled -exec touch --date=@0 {} +"], READAHEAD == "" ? [] : started, '
        '["FROM runtime"], weights, listed, ["COPY --link --from=code /app /app"], '
        '["COPY --link --from=compiled /compiled /"])\n'
    ) in texts["docker-bake.hcl"]


def test_a_package_is_compiled_where_it_is_installed(tmp_path: Path) -> None:
    files = {**REQUIREMENTS, "lib/pyproject.toml": PYPROJECT, "numba.txt": "./filters\n"}
    texts = rendered(tmp_path, files, package="lib")
    assert "prebake.startup.prepare /opt/prebake /numba.txt --all && eval" in texts["Dockerfile"]
    assert "compiled" not in texts["docker-bake.hcl"]
    assert texts[".dockerignore"].splitlines()[2:5] == ["*", "!lib", "!numba.txt"]


def test_path_sources_are_linked_to_the_baked_models_and_kept_out_of_the_code(tmp_path: Path) -> None:
    texts = rendered(tmp_path, {**REQUIREMENTS, "models.toml": '[models.a]\nsource = "path:weights/x/a"\n'})
    assert "mkdir -p /app/weights/x && ln -sfn /models/a /app/weights/x/a" in texts["Dockerfile"]
    assert 'variable "CHECKPOINTS" { default = "./weights" }' in texts["docker-bake.hcl"]
    assert "/weights/x/a" in texts[".dockerignore"].splitlines()


def test_files_of_a_folder_beside_the_models_file_need_no_folder_of_their_own(tmp_path: Path) -> None:
    models = """
[models.a]
source = "path:weights"
file = "net.pth"
class = "tensors"

[models.b]
source = "path:weights/b/"
class = "transformers:BertModel"
"""
    texts = rendered(tmp_path, {**REQUIREMENTS, "models.toml": models})
    assert [line for line in texts["Dockerfile"].splitlines() if "ln -sfn /models" in line] == [
        ' && mkdir -p /app/weights && ln -sfn /models/b /app/weights/b && eval "$SEAL"'
    ]
    assert 'variable "CHECKPOINTS" { default = "./weights" }' in texts["docker-bake.hcl"]
    assert [line for line in texts[".dockerignore"].splitlines() if "weights" in line] == ["/weights", "/weights/b"]


CHECK = "prebake check --warn-only --record-reads /listed/opt/prebake/readahead"
QUOTED = r"""'a \"$${B}\"'"""


@pytest.mark.parametrize(
    ("options", "recorded"),
    [
        ({"command": ("uvicorn", "a:b", "--host", "h")},
         f"{{ {CHECK} --timeout 300 -- uvicorn a:b --host h || {CHECK} --models-only; }}"),
        ({"command": ("uvicorn", "a:b", "--host", "h"), "ready": "/health"},
         f"{{ {CHECK} --ready /health --timeout 300 -- uvicorn a:b --host h || {CHECK} --models-only; }}"),
        ({"command": ("python", "w.py", 'a "${B}"')},
         f"{{ {CHECK} --until-exit --timeout 300 -- python w.py {QUOTED} || {CHECK} --models-only; }}"),
        ({"command": ("prebake", "serve")}, CHECK.replace(" --warn-only", "")),
    ],
    ids=["server", "readiness", "worker", "prebake"],
)  # fmt: skip
def test_what_the_start_reads_is_recorded_with_the_service_s_own_command(
    tmp_path: Path, options: dict[str, Any], recorded: str
) -> None:
    text = rendered(tmp_path, {"requirements.txt": "torch\n"}, **options)["docker-bake.hcl"]
    assert f'"RUN --network=none mkdir -p /listed/opt/prebake && {recorded}"])' in text.splitlines()


def test_modules_of_factories_are_allowed(tmp_path: Path) -> None:
    models = '[models.a]\nsource = "path:c/a"\nclass = "torch:nets.big:make"\n'
    assert "PREBAKE_ALLOW=nets.big" in rendered(tmp_path, {**REQUIREMENTS, "models.toml": models})["Dockerfile"]


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ({"models.toml": '[models.a]\nsource = "path:."\nfile = "a.pth"\nclass = "tensors"\n'}, {},
         'models.toml: models.a.source: the image build can\'t read "path:.": put it into a folder beside '
         'models.toml, such as "path:checkpoints/a"'),
        ({"models.toml": '[models.a]\nsource = "path:../a"\n'}, {},
         'models.toml: models.a.source: the image build can\'t read "path:../a": put it into a folder beside '
         'models.toml, such as "path:checkpoints/a"'),
        ({"models.toml": '[models.a]\nsource = "path:x/a"\n[models.b]\nsource = "path:y/b"\n'}, {},
         "models.toml: sources of the form path:… are in x, y: the image build takes one folder: put them all into it"),
        ({}, {"python": "3.9"}, '--python: "3.9" is not a version of Python from 3.10 to 3.14'),
        ({".python-version": "pypy3.10\n"}, {"python": None},
         '.python-version: "pypy3.10" is not a version of Python from 3.10 to 3.14'),
        ({"pyproject.toml": PYPROJECT.replace(">=3.12", "<3.9")}, {"python": None},
         'pyproject.toml: project.requires-python: "<3.9" allows no version from 3.10 to 3.14'),
        ({}, {"package": "lib"}, "--package lib: there is no lib/pyproject.toml"),
        ({}, {"name": "…"}, '"…" can\'t be the image\'s name: give one with --name'),
    ],
)  # fmt: skip
def test_wrong_projects_are_refused_with_the_way_out(
    tmp_path: Path, files: dict[str, str], options: dict[str, object], message: str
) -> None:
    assert refused(tmp_path, REQUIREMENTS | files, **options) == message


def test_shards_that_a_lock_records_become_layers(tmp_path: Path) -> None:
    lock = """\
format = 1

[models.m]
source = "path:c"
revision = "sha256:{digest}"

[[models.m.files]]
path = "w.pth"
size = 2
sha256 = "{digest}"

[models.m.baked]
set_digest = "sha256:{digest}"
layer_digest = "sha256:{digest}"
shard_digests = ["sha256:{digest}", "sha256:{digest}"]

[models.m.baked.converter]
prebake-build = "0.1.0"
""".format(digest="0" * 64)
    text = rendered(tmp_path, {**REQUIREMENTS, "models.lock": lock})["docker-bake.hcl"]
    assert 'variable "SHARDS" { default = {"m" = 2} }' in text
    without = rendered(tmp_path, {**REQUIREMENTS, "models.lock": "format = 1\n"})["docker-bake.hcl"]
    assert 'variable "SHARDS" { default = {} }' in without


def test_a_snapshot_is_a_target_in_a_file_of_its_own(tmp_path: Path) -> None:
    without = rendered(tmp_path, REQUIREMENTS)
    assert "docker-bake.override.hcl" not in without
    command = (*COMMAND, "--log-level", "a b")
    without = rendered(tmp_path, REQUIREMENTS, command=command)
    texts = rendered(tmp_path, REQUIREMENTS, snapshot=True, command=command)
    text = texts["docker-bake.override.hcl"]
    assert len(text.splitlines()) <= 60
    assert text.startswith("# Written by: prebake init --python 3.11 --snapshot -- uvicorn app:app --host 0.0.0.0 ")
    assert (
        "-- \\\n          /opt/prebake/bin/prebake run -- uvicorn app:app --host 0.0.0.0 --log-level 'a b' \\\n" in text
    )
    restore = '"/opt/prebake/libexec/prebake/prebake-restore", "/snapshot", "/opt/prebake/bin/prebake", "run", "--"'
    words = '"uvicorn", "app:app", "--host", "0.0.0.0", "--log-level", "a b"'
    assert f"ENTRYPOINT [{restore}]\n    CMD [{words}]\n" in text
    assert "--rehearse /dumped/snapshot -- \\\n          /opt/prebake/bin/prebake run -- uvicorn" in text
    assert 'group "default" { targets = [SNAPSHOT == "1" ? "snapshot" : "image"] }\n' in text
    assert texts["docker-bake.hcl"].splitlines()[2:] == without["docker-bake.hcl"].splitlines()[2:]


def test_the_rehearsal_waits_for_the_declared_path_and_leaves_out_what_serves_nothing(tmp_path: Path) -> None:
    ready = rendered(tmp_path, REQUIREMENTS, snapshot=True, ready="/health")["docker-bake.override.hcl"]
    assert " && prebake snapshot --rehearse /dumped/snapshot --ready /health -- \\\n" in ready
    worker = rendered(tmp_path, {"requirements.txt": "torch\n"}, snapshot=True, command=("python", "worker.py"))[
        "docker-bake.override.hcl"
    ]
    assert "--rehearse" not in worker
    assert "python worker.py \\\n     && find /dumped" in worker


@pytest.mark.parametrize("option", ["--workers", "--reload", "--workers=2"])
def test_what_a_snapshot_refuses_is_noted(tmp_path: Path, option: str) -> None:
    command = ("uvicorn", "app:app", "--host", "0.0.0.0", option)
    for snapshot, expected in (
        (True, (f"a snapshot holds one process, so its build refuses {option}: leave it out, and start more "
                "containers, which share the snapshot's memory",)),
        (False, ()),
    ):  # fmt: skip
        assert found(tmp_path, REQUIREMENTS, snapshot=snapshot, command=command).notes == expected
