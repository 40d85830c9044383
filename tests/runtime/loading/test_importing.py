"""A module that asks for a model while it is imported loads it in its own thread, or gets an error; it never hangs.

Each program would hang without that; it then ends after 60 s with the stacks of its threads.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from helpers import ROOT
from helpers.runtime_fakes import bake_module, change_manifest, python

START = "import faulthandler; faulthandler.dump_traceback_later(60, exit=True)\n"

NET = """
def net():
    from helpers import runtime_fakes
    return runtime_fakes.plain()
"""

ASK = """
import os, prebake
models = prebake.Models(os.environ["ROOT"])
loaded = models["net"]
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The models `net`, of the factory `app:net`, and `other`."""
    folder, _ = bake_module(tmp_path / "models", "net", "helpers.runtime_fakes:plain")
    change_manifest(folder, **{"class": "app:net"})
    bake_module(tmp_path / "models", "other", "helpers.runtime_fakes:plain")
    return tmp_path / "models"


def run(root: Path, code: str, **files: str) -> tuple[str, str]:
    """What a program prints that finds these modules, and the last line of its error."""
    modules = root.parent / "modules"
    modules.mkdir()
    for name, text in files.items():
        (modules / f"{name}.py").write_text(text, encoding="utf-8")
    path = os.pathsep.join([str(modules), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = python(START + code, PYTHONPATH=path, ROOT=str(root), HERE=str(modules), PREBAKE_ALLOW="app,package,helpers")
    assert "Timeout" not in done.stderr, done.stderr
    return done.stdout.strip(), (done.stderr.strip().splitlines() or [""])[-1]


@pytest.mark.parametrize(
    "ask",
    [
        ASK,
        ASK.replace('loaded = models["net"]', 'models.wait(); loaded = models["net"]'),
        ASK.replace('loaded = models["net"]', 'import asyncio; loaded = asyncio.run(models.get("net"))'),
    ],
    ids=["item", "wait", "get"],
)
def test_a_module_asks_below_its_factory(root: Path, ask: str) -> None:
    code = "import app\nprint(app.loaded.tier, app.models['net'] is app.loaded, app.models['other'].tier)"
    assert run(root, code, app=NET + ask) == ("mapped True mapped", "")


def test_a_module_that_the_factorys_module_imports_asks(root: Path) -> None:
    assert run(root, "import service\nprint(service.loaded.tier)", app="import service\n" + NET, service=ASK) == (
        "mapped", "",
    )  # fmt: skip


def test_a_package_asks_whose_module_has_the_factory_and_imports_the_package(root: Path) -> None:
    change_manifest(root / "net", **{"class": "package.app:net"})
    folder = root.parent / "modules" / "package"
    code = (
        "import os, pathlib\n"
        "folder = pathlib.Path(os.environ['HERE']) / 'package'\n"
        "folder.mkdir(); (folder / '__init__.py').write_text('from service import loaded')\n"
        f"(folder / 'app.py').write_text('import package' + {NET!r})\n"
        "import package\n"
        "print(package.loaded.tier)"
    )
    assert run(root, code, service=ASK) == ("mapped", ""), folder


def test_a_module_asks_above_its_factory(root: Path) -> None:
    assert run(root, "import app", app=ASK + NET) == (
        "",
        "prebake.errors.ConfigError: net: app asks for model \"net\" while it is being imported, and app:net is not "
        "defined yet (ask below the definition of net, or in a function that is called after the import)",
    )  # fmt: skip


@pytest.mark.parametrize("name", ["net", "other"])
def test_a_module_asks_whose_factory_is_needed_by_a_load_that_began_before(root: Path, name: str) -> None:
    ask = ASK.replace('models["net"]', f"models.start() or models[{name!r}]")
    assert run(root, "import app", app=NET + ask) == (
        "",
        f"prebake.errors.ConfigError: {name}: app asks for model \"{name}\" while it is being imported, and the load "
        'of "net" in another thread waits until app is imported (ask in a function that is called after the import, '
        "or call start() after it)",
    )  # fmt: skip


def test_a_script_that_its_own_load_imports_again(root: Path) -> None:
    code = "import os, runpy\nrunpy.run_path(os.path.join(os.environ['HERE'], 'app.py'), run_name='__main__')"
    assert run(root, code, app=NET + ASK) == (
        "",
        "prebake.errors.ConfigError: net: app asks for model \"net\" during the load of a model; the two loads "
        "would deadlock (ask in a function that is called later or, in a script, under if __name__ == "
        '"__main__")',
    )  # fmt: skip


def test_a_factory_that_asks_for_a_model(root: Path) -> None:
    asking = "def net():\n    return models['other'].model\n" + ASK.replace('loaded = models["net"]', "")
    out, error = run(root, "import app\napp.models['net']", app=asking)
    assert out == ""
    assert error.startswith('prebake.errors.ConfigError: other: a factory asks for model "other" during the load of a ')


def test_a_module_that_asks_for_what_is_loaded_waits_for_nobody(root: Path) -> None:
    code = (
        "import os, sys, types, prebake\n"
        "sys.modules['shared'] = shared = types.ModuleType('shared')\n"
        "shared.models = prebake.Models(os.environ['ROOT'])\n"
        "shared.models['other']\n"
        "print(shared.models['net'].tier)"
    )
    assert run(root, code, app="from shared import models\nmodels['other']\n" + NET) == ("mapped", "")


def test_a_module_that_no_load_needs_asks_and_its_load_has_a_thread_and_a_timeout(root: Path) -> None:
    code = (
        "import service\n"
        "print(service.loaded.tier, {s.thread for s in service.models.timeline.spans if s.name == 'load'})"
    )
    service = "import app\n" + ASK
    assert run(root, code, app=NET, service=service) == ("mapped {'prebake-net'}", "")


# --- warm-ups ----------------------------------------------------------------------------------------------------

WARM = "def warm(loaded):\n    warmed.append(loaded.name)\n"
ASK_WARM = "warmed = []\n" + ASK.replace('"])', '"], warm=True)', 1)


@pytest.fixture
def warm_root(tmp_path: Path) -> Path:
    """The models `net` and `other`, of factories elsewhere; `net` has the warm-up `app:warm`."""
    folder, _ = bake_module(tmp_path / "models", "net", "helpers.runtime_fakes:plain")
    change_manifest(folder, loading={"warmup": "app:warm"})
    bake_module(tmp_path / "models", "other", "helpers.runtime_fakes:plain")
    return tmp_path / "models"


def test_a_module_asks_below_its_warm_up(warm_root: Path) -> None:
    code = "import app\nprint(app.loaded.tier, app.warmed)"
    assert run(warm_root, code, app=WARM + ASK_WARM) == ("mapped ['net']", "")


def test_a_module_asks_above_its_warm_up(warm_root: Path) -> None:
    """The load is worth more than the warm-up."""
    out, error = run(warm_root, "import app\nprint(app.loaded.tier, app.warmed)", app=ASK_WARM + WARM)
    assert out == "mapped []"
    assert error.startswith(
        f"{warm_root}/net: loading.warmup: cannot import app:warm: partially initialized module 'app' "
    )


def test_a_module_asks_that_the_warm_ups_module_imports(warm_root: Path) -> None:
    service = ASK_WARM
    code = "import service\nprint(service.loaded.tier, service.warmed)"
    app = "import service\nfrom service import warmed\n" + WARM
    assert run(warm_root, code, app=app, service=service) == ("mapped ['net']", "")


def test_a_module_asks_whose_warm_up_is_needed_by_a_load_that_began_before(warm_root: Path) -> None:
    ask = ASK_WARM.replace('models["net"]', 'models.start() or models["other"]')
    assert run(warm_root, "import app", app=WARM + ask) == (
        "",
        'prebake.errors.ConfigError: other: app asks for model "other" while it is being imported, and the load of '
        '"net" in another thread waits until app is imported (ask in a function that is called after the import, or '
        "call start() after it)",
    )


def test_a_module_that_only_a_warm_up_needs_asks_without_warming_and_waits_for_a_thread(warm_root: Path) -> None:
    code = (
        "import helpers.runtime_fakes\nimport app\n"
        "print(app.loaded.tier, {s.thread for s in app.models.timeline.spans if s.name == 'load'})"
    )
    assert run(warm_root, code, app=WARM + ASK) == ("mapped {'prebake-net'}", "")
