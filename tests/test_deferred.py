"""Deferred packages: nothing is imported until it is used, and then everything is as if it had been."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import importlib.util
import inspect
import json
import pickle
import sys
import threading
import typing
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from prebake import deferred, standins
from prebake.deferred import DEFERRED, StandIn, defer, report, resolved
from runtime_fakes import python_says

LAZY = '''
"""A package that tells when it is imported."""
import sys
sys.imports.append(__name__)
__version__ = "1.2"
__all__ = ["Shape", "area", "NUMBER"]
from lazy.errors import LazyError
NUMBER = 6
TABLE = {"a": 1}

class Meta(type):
    pass

class Shape(metaclass=Meta):
    sides = 4
    def __init__(self, width=1):
        self.width = width
    def __eq__(self, other):
        return isinstance(other, Shape) and self.width == other.width
    def __hash__(self):
        return hash(self.width)
    @staticmethod
    def unit():
        return Shape(1)
    def __class_getitem__(cls, item):
        return ("Shape of", item)

Alias = Shape

def area(shape, factor=1):
    return shape.width ** 2 * factor

def mark(function=None, *, name=None):
    def marked(function):
        def inner(*args):
            return ("marked", name, function(*args))
        inner.marked = True
        return inner
    return marked if function is None else marked(function)
'''


@pytest.fixture
def imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The package `lazy`, deferred; what of it was imported so far."""
    (tmp_path / "lazy").mkdir()
    (tmp_path / "lazy" / "__init__.py").write_text(LAZY)
    (tmp_path / "lazy" / "errors.py").write_text("class LazyError(ValueError): pass\n")
    (tmp_path / "lazy" / "part.py").write_text(
        "import sys\nsys.imports.append(__name__)\nVALUE = 7\ndef double(x): return 2 * x\n"
    )
    names: list[str] = []
    monkeypatch.setattr(sys, "imports", names, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("PREBAKE_DEFER", raising=False)
    importlib.invalidate_caches()
    finders = list(sys.meta_path)
    defer(["lazy"])
    yield names
    sys.meta_path[:] = finders
    deferred._finder.packages.pop("lazy", None)
    deferred._finder._named.clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "lazy"]:
        del sys.modules[name]


def test_naming_a_package_its_parts_and_their_names_imports_nothing(imports: list[str]) -> None:
    import lazy  # type: ignore[import-not-found]
    import lazy.part  # type: ignore[import-not-found]
    from lazy import NUMBER, Shape, area
    from lazy.part import double

    assert all(isinstance(name, StandIn) for name in (NUMBER, Shape, area, double, Shape.unit, lazy.part.VALUE))
    assert isinstance(lazy, ModuleType)
    assert imports == []
    assert report()["lazy"] is None


@pytest.mark.parametrize(
    ("use", "expected"),
    [
        (lambda lazy: lazy.area(lazy.Shape(3), factor=2), 18),
        (lambda lazy: lazy.NUMBER + 1, 7),
        (lambda lazy: 1 + lazy.NUMBER, 7),
        (lambda lazy: 7 - lazy.NUMBER, 1),
        (lambda lazy: -lazy.NUMBER, -6),
        (lambda lazy: 2**lazy.NUMBER, 64),
        (lambda lazy: divmod(lazy.NUMBER, 4), (1, 2)),
        (lambda lazy: round(lazy.NUMBER), 6),
        (lambda lazy: lazy.NUMBER == 6, True),
        (lambda lazy: lazy.NUMBER < 7, True),
        (lambda lazy: lazy.NUMBER & 2, 2),
        (lambda lazy: lazy.NUMBER | 1, 7),
        (lambda lazy: 1 | lazy.NUMBER, 7),
        (lambda lazy: range(3)[lazy.NUMBER - 5], 1),
        (lambda lazy: [0] * lazy.NUMBER, [0] * 6),
        (lambda lazy: "yes" if lazy.NUMBER else "no", "yes"),
        (lambda lazy: (int(lazy.NUMBER), float(lazy.NUMBER), hash(lazy.NUMBER)), (6, 6.0, 6)),
        (lambda lazy: f"{lazy.NUMBER:03d}", "006"),
        (lambda lazy: str(lazy.NUMBER), "6"),
        (lambda lazy: (len(lazy.TABLE), list(lazy.TABLE), lazy.TABLE["a"], "a" in lazy.TABLE), (1, ["a"], 1, True)),
        (lambda lazy: {**lazy.TABLE}, {"a": 1}),
        (lambda lazy: lazy.Shape.sides + 0, 4),
        (lambda lazy: lazy.Shape.unit().width, 1),
        (lambda lazy: lazy.Shape[int], ("Shape of", int)),
        (lambda lazy: lazy.Shape.__name__, "Shape"),
        (lambda lazy: lazy.part.double(4), 8),
        (lambda lazy: lazy.__version__, "1.2"),
        (lambda lazy: sorted(map(str, lazy.__all__)), ["NUMBER", "Shape", "area"]),
        (lambda lazy: "NUMBER" in dir(lazy), True),
        (lambda lazy: {lazy.NUMBER: 1}[6], 1),
        (lambda lazy: copy.copy(lazy.TABLE), {"a": 1}),
        (lambda lazy: copy.deepcopy(lazy.TABLE), {"a": 1}),
        (lambda lazy: pickle.loads(pickle.dumps(lazy.TABLE)), {"a": 1}),
    ],
)  # fmt: skip
def test_every_use_gives_what_the_real_thing_gives(
    imports: list[str], use: Callable[[Any], Any], expected: Any
) -> None:
    import lazy
    import lazy.part

    assert imports == []
    assert use(lazy) == expected
    assert imports[0] == "lazy"
    assert report()["lazy"]


def test_the_first_use_imports_every_part_that_was_named_once(imports: list[str]) -> None:
    import lazy.part
    from lazy import NUMBER

    assert NUMBER + 1 == 7
    assert imports == ["lazy", "lazy.part"]
    assert (NUMBER + 1, lazy.part.VALUE) == (7, 7)
    assert imports == ["lazy", "lazy.part"]
    assert report()["lazy"] == "lazy.NUMBER"


def test_afterwards_the_module_that_was_named_before_gives_the_real_things(imports: list[str]) -> None:
    import lazy as before

    assert before.NUMBER + 1
    import lazy as after

    assert after is sys.modules["lazy"]
    assert type(after) is ModuleType
    assert before.Shape is after.Shape
    assert not isinstance(before.NUMBER, StandIn)


def test_a_stand_in_can_be_a_base_class(imports: list[str]) -> None:
    from lazy import Shape

    class Square(Shape):  # type: ignore[misc]
        pass

    assert isinstance(Square(), resolved(Shape))
    assert Square.__mro__[1] is resolved(Shape)


def test_asking_whether_something_is_of_a_class_that_nobody_imported_imports_nothing(imports: list[str]) -> None:
    from lazy import Shape

    assert not isinstance(3, Shape)
    assert not isinstance(3, (str, Shape))
    assert not issubclass(int, Shape)
    assert imports == []


def test_afterwards_instances_are_known(imports: list[str]) -> None:
    from lazy import Alias, Shape

    shape = Shape(2)
    assert isinstance(shape, Shape)
    assert isinstance(shape, Alias)
    assert isinstance(shape, (int, Shape))
    assert issubclass(resolved(Shape), Shape)
    assert not isinstance(3, Shape)


def test_unions_in_annotations_import_nothing_and_are_right_when_they_are_used(imports: list[str]) -> None:
    from lazy import Shape

    maybe, other = Shape | None, int | Shape
    assert imports == []
    assert isinstance(None, maybe)
    assert not isinstance("x", maybe)
    assert isinstance(3, other)
    assert resolved(maybe) == resolved(Shape) | None
    assert isinstance(Shape(1), maybe)
    assert (Shape | None) == resolved(maybe)


def test_annotations_and_dataclasses_import_nothing(imports: list[str]) -> None:
    from lazy import Shape

    @dataclasses.dataclass
    class Holder:
        shape: Shape | None = None
        shapes: list[Shape] = dataclasses.field(default_factory=list)

    def function(shape: Shape, default: Shape | None = None) -> list[Shape]:
        return [shape, default]

    inspect.signature(function)
    repr(Shape)
    assert repr(Holder()).endswith("Holder(shape=None, shapes=[])")
    Holder.__annotations__["x"] = Shape
    assert imports == []
    assert repr(Shape) == "<deferred lazy.Shape>"
    assert typing.Optional[Shape] == (resolved(Shape) | None)  # noqa: UP045


def test_setting_a_name_sets_it_on_the_real_thing(imports: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import lazy
    from lazy import Shape

    Shape.sides = 5
    assert lazy.Shape(1).sides == 5
    monkeypatch.setattr(lazy, "NUMBER", 60)
    assert sys.modules["lazy"].NUMBER == 60
    monkeypatch.undo()


def test_setting_a_name_of_a_package_that_is_deferred_sets_it_on_the_real_one(imports: list[str]) -> None:
    import lazy

    lazy.NUMBER = 60
    assert sys.modules["lazy"].NUMBER == 60
    assert lazy.NUMBER == 60


def test_names_and_parts_that_do_not_exist_are_missing(imports: list[str]) -> None:
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'lazy\.absent'$"):
        importlib.import_module("lazy.absent")
    assert importlib.util.find_spec("lazy.absent") is None
    assert importlib.util.find_spec("lazy.part") is not None
    import lazy

    absent = lazy.absent
    assert imports == []
    with pytest.raises(AttributeError, match="absent"):
        absent()


def test_a_star_import_imports(imports: list[str]) -> None:
    names: dict[str, Any] = {}
    exec("from lazy import *", names)
    assert names["NUMBER"] + 1 == 7


def test_an_exception_class_can_be_caught(imports: list[str]) -> None:
    """`except` takes real classes only: asking for an error is asking for the package."""
    from lazy import LazyError

    def catch(error: Exception) -> str:
        try:
            raise error
        except LazyError:
            return "lazy"
        except KeyError:
            return "another"

    assert catch(KeyError()) == "another"
    assert catch(resolved(LazyError)()) == "lazy"


def test_a_package_that_fails_to_import_fails_when_it_is_used_each_time(imports: list[str], tmp_path: Path) -> None:
    (tmp_path / "lazy" / "__init__.py").write_text("raise ImportError('a library is missing')")
    from lazy import Shape

    for _ in range(2):
        with pytest.raises(ImportError, match=r"^a library is missing$"):
            Shape()


def test_pickling_a_stand_in_pickles_the_real_thing(imports: list[str]) -> None:
    from lazy import Shape

    text = pickle.dumps([Shape, Shape(3)])
    shape_class, shape = pickle.loads(text)
    assert shape_class is resolved(Shape)
    assert shape == Shape(3)


def test_markers_leave_a_function_as_it_is_until_their_package_is_imported(
    imports: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standins, "MARKERS", frozenset({"lazy.mark"}))
    import lazy

    @lazy.mark  # type: ignore[untyped-decorator]
    def plain(x: int) -> int:
        """Adds one."""
        return x + 1

    @lazy.mark(name="n")  # type: ignore[untyped-decorator]
    def named(x: int) -> int:
        return x + 1

    assert (plain(1), named(1), plain.__name__, plain.__doc__) == (2, 2, "plain", "Adds one.")
    assert imports == []
    assert lazy.NUMBER + 1
    assert (plain(1), named(1)) == (("marked", None, 2), ("marked", "n", 2))
    assert lazy.mark(lambda: 0).marked


def test_first_use_from_many_threads_imports_once(imports: list[str], tmp_path: Path) -> None:
    """Some use the package while another's first use still imports it."""
    (tmp_path / "lazy" / "part.py").write_text(
        "import sys, time\nsys.imports.append(__name__)\ntime.sleep(0.2)\nVALUE = 7\n"
    )
    import lazy
    import lazy.part
    from lazy import area
    from lazy.part import VALUE

    line = threading.Barrier(12, timeout=60)
    found: list[Any] = []

    def use(number: int) -> None:
        line.wait()
        uses: list[Callable[[], Any]] = [
            lambda: VALUE + 0, lambda: lazy.part.VALUE + 0, lambda: area(lazy.Shape(1)) + 6, lambda: lazy.NUMBER + 1,
        ]  # fmt: skip
        try:
            found.append(uses[number % 4]())
        except BaseException as error:
            found.append(error)

    threads = [threading.Thread(target=use, args=(number,), daemon=True) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [7] * 12
    assert imports == ["lazy", "lazy.part"]


def test_a_module_that_is_being_imported_may_use_a_package_that_another_thread_resolves(
    imports: list[str], tmp_path: Path
) -> None:
    """The one holds its own module's lock and wants the package; the package's import wants that module."""
    (tmp_path / "outer.py").write_text(
        "import sys\nfrom lazy import NUMBER\nsys.importing.set()\nsys.resolving.wait(30)\nRESULT = NUMBER + 1\n"
    )
    (tmp_path / "lazy" / "part.py").write_text("import sys\nsys.resolving.set()\nimport outer\nVALUE = 7\n")
    import lazy.part

    importing, resolving = threading.Event(), threading.Event()
    sys.importing, sys.resolving = importing, resolving  # type: ignore[attr-defined]
    found: list[Any] = []
    first = threading.Thread(target=lambda: found.append(importlib.import_module("outer").RESULT), daemon=True)
    first.start()
    assert importing.wait(30)
    second = threading.Thread(target=lambda: found.append(lazy.part.VALUE + 0), daemon=True)
    second.start()
    first.join(20)
    second.join(20)
    sys.modules.pop("outer", None)
    del sys.importing, sys.resolving  # type: ignore[attr-defined]
    assert sorted(found) == [7, 7]


def test_a_module_that_is_named_while_another_thread_resolves_its_package_is_the_real_one(imports: list[str]) -> None:
    """The package was deferred when the import system asked where the module is, and is not when it asks for it."""
    spec = importlib.util.find_spec("lazy")
    assert spec is not None
    deferred._finder.packages["lazy"].resolve(by="another thread")
    loaded = importlib._bootstrap._load(spec)  # type: ignore[attr-defined]
    assert type(loaded) is type(sys.modules["lazy"]) is ModuleType
    assert loaded.NUMBER == 6


def test_switched_off_it_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREBAKE_DEFER", "0")
    before = list(sys.meta_path), dict(deferred._finder.packages)
    defer(["wave"])
    assert (list(sys.meta_path), dict(deferred._finder.packages)) == before


def test_packages_that_are_imported_or_not_installed_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREBAKE_DEFER", raising=False)
    finders = list(sys.meta_path)
    defer(["json", "no_such_package", "prebake"])
    sys.meta_path[:] = finders
    assert not {"json", "no_such_package", "prebake"} & deferred._finder.packages.keys()
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("no_such_package")


# --- the packages that are deferred, each used after it was ------------------------------------------------------

PREAMBLE = "import sys, warnings; warnings.simplefilter('ignore')\nfrom prebake import deferred\ndeferred.defer()\n"

USES = [
    ("scipy", "import scipy.ndimage, numpy\nassert scipy.ndimage.label(numpy.eye(3))[1] == 3"),
    ("scipy", "from scipy.optimize import linear_sum_assignment\nimport numpy\n"
              "assert list(linear_sum_assignment(numpy.array([[4, 1], [2, 0]]))[1]) == [1, 0]"),
    ("scipy", "import scipy\nassert scipy.__version__.split('.')[0].isdigit()"),
    ("skimage", "from skimage import io\nimport skimage.transform, numpy\n"
                "assert skimage.transform.rescale(numpy.ones((4, 4)), 0.5).shape == (2, 2)"),
    ("sympy", "import sympy\nx = sympy.Symbol('x')\nassert sympy.simplify(x + x - 2 * x) == 0\n"
              "assert str(sympy.expand((x + 1) ** 2)) == 'x**2 + 2*x + 1'"),
    ("torch._dynamo", "import torch\nf = torch.compile(lambda x: x.sin() + 1, backend='eager')\n"
                      "assert torch.equal(f(torch.zeros(3)), torch.ones(3))"),
    ("torch._dynamo", "import torch\n@torch._dynamo.disable\ndef f(x): return x + 1\nassert f(1) == 2\n"
                      "assert deferred.report().get('torch._dynamo') is None\n"
                      "torch._dynamo.reset()\nassert f(1) == 2 and torch.compile(f, backend='eager')(1) == 2"),
    ("torch._dynamo", "import torch\ntorch._dynamo.config.suppress_errors = True\n"
                      "assert sys.modules['torch._dynamo'].config.suppress_errors is True"),
    ("torch.distributed.tensor", "import torch, torch.distributed.tensor\n"
                                 "assert torch.distributed.tensor.Shard(0) == torch.distributed.tensor.Shard(0)\n"
                                 "assert not isinstance(torch.ones(1), torch.distributed.tensor.DTensor)"),
    ("torch.distributed.fsdp", "from torch.distributed.fsdp import MixedPrecision\nimport torch\n"
                               "assert MixedPrecision(param_dtype=torch.float16).param_dtype is torch.float16"),
    ("torch.distributed.checkpoint", "import torch.distributed.checkpoint as dcp, torch, tempfile\n"
                                     "state = {'a': torch.ones(2)}\n"
                                     "with tempfile.TemporaryDirectory() as d:\n"
                                     "    dcp.save(state, checkpoint_id=d, no_dist=True)\n"
                                     "    other = {'a': torch.zeros(2)}\n"
                                     "    dcp.load(other, checkpoint_id=d, no_dist=True)\n"
                                     "assert torch.equal(other['a'], state['a'])"),
    ("torch.export", "import torch\nclass M(torch.nn.Module):\n    def forward(self, x): return x * 2\n"
                     "program = torch.export.export(M(), (torch.ones(2),))\n"
                     "assert torch.equal(program.module()(torch.ones(2)), torch.full((2,), 2.0))"),
    ("torch.optim", "import torch\nw = torch.nn.Parameter(torch.ones(1))\n"
                    "class Mine(torch.optim.SGD): pass\no = Mine([w], lr=1.0)\nw.sum().backward(); o.step()\n"
                    "assert w.item() == 0 and isinstance(o, torch.optim.Optimizer)\n"
                    "torch.optim.lr_scheduler.StepLR(o, 1).step()"),
    ("torch.distributions", "import torch\nn = torch.distributions.Normal(0.0, 1.0)\n"
                            "assert n.log_prob(torch.tensor(0.0)) < 0\n"
                            "assert torch.distributions.kl_divergence(n, n) == 0"),
    ("torch.testing", "import torch\ntorch.testing.assert_close(torch.ones(1), torch.ones(1))"),
    ("torch.masked", "import torch\nassert torch.masked.sum(torch.ones(2), mask=torch.tensor([True, False])) == 1"),
    ("torchvision.models", "from prebake import compat\ncompat.torchvision_operators()\n"
                           "import torchvision, torch\nfrom torchvision.models import resnet18, VGG\n"
                           "assert deferred.report().get('torchvision.models') is None\n"
                           "assert resnet18().eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)\n"
                           "assert isinstance(torchvision.models.vgg16_bn(), VGG)"),
    ("jinja2", "import jinja2\nassert jinja2.Template('{{ a }}').render(a=1) == '1'\n"
               "try: jinja2.Template('{{')\nexcept jinja2.TemplateSyntaxError: pass"),
]  # fmt: skip

EACH_IN_A_CHILD = """
import importlib.util, json, os, tempfile, traceback
import torch
uses, answers = json.loads(sys.argv[1]), []
for package, code in uses:
    with tempfile.TemporaryFile() as answer:
        child = os.fork()
        if not child:
            try:
                exec(code, {"sys": sys, "deferred": deferred})
                said = [deferred.report()[package] is not None, type(sys.modules[package]).__name__]
            except BaseException:
                said = traceback.format_exc()
            os.write(answer.fileno(), json.dumps(said).encode())
            os._exit(0)
        os.waitpid(child, 0)
        answer.seek(0)
        answers.append(json.loads(answer.read() or b'"the child died"'))
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers() -> dict[tuple[str, str], object]:
    """What became of each use: all in children of one process that has imported torch and used nothing."""
    said = python_says(PREAMBLE + EACH_IN_A_CHILD, json.dumps(USES)).splitlines()[-1]
    return dict(zip(USES, json.loads(said), strict=True))


@pytest.mark.parametrize("use", USES, ids=[f"{package}-{number}" for number, (package, _) in enumerate(USES)])
def test_a_deferred_package_works_when_it_is_used(answers: dict[tuple[str, str], object], use: tuple[str, str]) -> None:
    if use[0] not in DEFERRED:
        pytest.skip(f"{use[0]} is not deferred")
    assert answers[use] == [True, "module"], answers[use]


def test_transformers_loads_as_usual_while_packages_are_deferred(tiny_models: Path) -> None:
    """The framework's own loader, which imports and asks for far more than a mapped load."""
    said = python_says(
        PREAMBLE + "import pathlib\n"
        "from prebake.loader import load\n"
        "loaded = load(pathlib.Path(sys.argv[1]), ['ordinary'])\n"
        "from prebake.analyzer import example\nimport torch\n"
        "with torch.inference_mode():\n"
        "    ids = loaded.model.generate(**loaded.processor(images=example(), return_tensors='pt'), max_new_tokens=5)\n"
        "print(loaded.tier, ids.tolist())",
        tiny_models / "caption",
    )
    plain = python_says(
        "import sys, warnings, pathlib; warnings.simplefilter('ignore')\n"
        "from prebake.loader import load\nfrom prebake.analyzer import example\nimport torch\n"
        "loaded = load(pathlib.Path(sys.argv[1]), ['mapped'])\n"
        "with torch.inference_mode():\n"
        "    ids = loaded.model.generate(**loaded.processor(images=example(), return_tensors='pt'), max_new_tokens=5)\n"
        "print('ordinary', ids.tolist(), file=sys.stdout)",
        tiny_models / "caption",
        PREBAKE_DEFER="0",
    )
    assert said == plain


@pytest.mark.skipif(
    version("transformers") < "5", reason="transformers 4 uses distributed tensors while it is imported"
)
def test_a_mapped_start_and_an_answer_import_neither_compilers_nor_distributed_tensors(tiny_models: Path) -> None:
    """What the deferral is for."""
    said = python_says(
        PREAMBLE + "import prebake, torch\nfrom prebake.analyzer import example\n"
        "loaded = prebake.Models(sys.argv[1])['caption']\n"
        "inputs = loaded.processor(images=example(), return_tensors='pt')\n"
        "with torch.inference_mode(): loaded.model.generate(**inputs, max_new_tokens=3)\n"
        "heavy = ('scipy', 'sympy', 'torch._dynamo', 'torch.distributed.tensor', 'torch.export')\n"
        "print([name for name in heavy if deferred.report().get(name)])",
        tiny_models,
    )
    assert said == "[]"
