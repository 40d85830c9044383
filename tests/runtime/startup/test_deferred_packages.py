"""The packages that are deferred: each works when it is used, and a mapped start imports none of the heavy ones."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import pytest

from helpers.runtime_fakes import python_says
from prebake.startup.deferred import DEFERRED

PREAMBLE = (
    "import sys, warnings; warnings.simplefilter('ignore')\nfrom prebake.startup import deferred\ndeferred.defer()\n"
)

USES = [
    ("scipy", "import scipy.ndimage, numpy\nassert scipy.ndimage.label(numpy.eye(3))[1] == 3"),
    ("scipy", "from scipy.optimize import linear_sum_assignment\nimport numpy\n"
              "assert list(linear_sum_assignment(numpy.array([[4, 1], [2, 0]]))[1]) == [1, 0]"),
    ("scipy", "import scipy\nassert scipy.__version__.split('.')[0].isdigit()"),
    ("skimage", "from skimage import io\nimport skimage.transform, numpy\n"
                "assert skimage.transform.rescale(numpy.ones((4, 4)), 0.5).shape == (2, 2)"),
    ("sklearn", "from sklearn.metrics import roc_curve\nimport sklearn\nassert deferred.report()['sklearn'] is None\n"
                "assert len(roc_curve([0, 1], [0.1, 0.9])) == 3\nassert sklearn.__version__"),
    ("sympy", "import sympy\nx = sympy.Symbol('x')\nassert sympy.simplify(x + x - 2 * x) == 0\n"
              "assert str(sympy.expand((x + 1) ** 2)) == 'x**2 + 2*x + 1'"),
    ("torch._dynamo", "import torch\nf = torch.compile(lambda x: x.sin() + 1, backend='eager')\n"
                      "assert torch.equal(f(torch.zeros(3)), torch.ones(3))"),
    ("torch._dynamo", "import torch\n@torch._dynamo.disable\ndef f(x): return x + 1\nassert f(1) == 2\n"
                      "assert deferred.report().get('torch._dynamo') is None\n"
                      "torch._dynamo.reset()\nassert f(1) == 2 and torch.compile(f, backend='eager')(1) == 2"),
    ("torch._dynamo", "import torch\n@torch._dynamo.allow_in_graph\nclass Marked: pass\n"
                      "assert isinstance(Marked, type) and Marked.__name__ == 'Marked'\n"
                      "assert deferred.report().get('torch._dynamo') is None\n"
                      "from torch._dynamo import trace_rules\n"
                      "assert id(Marked) in trace_rules._allowed_callable_ids\n"
                      "@torch._dynamo.allow_in_graph\nclass Later: pass\n"
                      "assert id(Later) in trace_rules._allowed_callable_ids"),
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
    ("torchvision.models", "from prebake.families import compat\ncompat.torchvision_operators()\n"
                           "import torchvision, torch\nfrom torchvision.models import resnet18, VGG\n"
                           "assert deferred.report().get('torchvision.models') is None\n"
                           "assert resnet18().eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)\n"
                           "assert isinstance(torchvision.models.vgg16_bn(), VGG)"),
    ("sentence_transformers.base.trainer",
     "sys.modules['timm'] = None  # transformers imports it where it is installed, and it uses torch.optim\n"
     "from prebake.families import compat\ncompat.torchvision_operators()\n"
     "from sentence_transformers import CrossEncoder, SentenceTransformer, SentenceTransformerTrainer\n"
     "import transformers\nreport = deferred.report()\n"
     "# transformers 4 uses distributed tensors while it is imported\n"
     "assert report['torch.optim'] is None or transformers.__version__ < '5'\n"
     "assert report['sentence_transformers.base.trainer'] is None\n"
     "assert not isinstance(1, SentenceTransformerTrainer)\n"
     "class Mine(SentenceTransformerTrainer): pass\n"
     "from transformers import Trainer\nassert issubclass(Mine, Trainer)"),
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
                importer = deferred.DEFERRED[package][0] + ".using"
                exec(code, {"sys": sys, "deferred": deferred, "__name__": importer})
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


def test_the_version_of_accelerate_is_told_without_its_import(tmp_path: Path) -> None:
    """diffusers asks for it while it is imported."""
    (tmp_path / "accelerate").mkdir()
    (tmp_path / "accelerate" / "__init__.py").write_text("__version__ = '1.2.3'\nhooks = 5\nprint('imported')")
    (tmp_path / "accelerate-1.2.3.dist-info").mkdir()
    (tmp_path / "accelerate-1.2.3.dist-info" / "METADATA").write_text("Name: accelerate\nVersion: 1.2.3\n")
    code = "import accelerate\nprint(accelerate.__version__)\nfrom accelerate import hooks\nprint('used', hooks + 1)"
    said = python_says(
        f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\n{PREAMBLE}"
        f"exec({code!r}, {{'__name__': 'diffusers.using'}})\n"
        f"exec({code!r}, {{'__name__': 'app'}})\n"
    )
    assert said.split() == ["1.2.3", "imported", "used", "6", "1.2.3", "used", "6"]


def test_transformers_loads_as_usual_while_packages_are_deferred(tiny_models: Path) -> None:
    """The framework's own loader, which imports and asks for far more than a mapped load."""
    said = python_says(
        PREAMBLE + "import pathlib\n"
        "from prebake import load\n"
        "loaded = load(pathlib.Path(sys.argv[1]), ['ordinary'])\n"
        "from image_analyzer.example import example\nimport torch\n"
        "with torch.inference_mode():\n"
        "    ids = loaded.model.generate(**loaded.processor(images=example(), return_tensors='pt'), max_new_tokens=5)\n"
        "print(loaded.tier, ids.tolist())",
        tiny_models / "caption",
    )
    plain = python_says(
        "import sys, warnings, pathlib; warnings.simplefilter('ignore')\n"
        "from prebake import load\nfrom image_analyzer.example import example\nimport torch\n"
        "loaded = load(pathlib.Path(sys.argv[1]), ['mapped'])\n"
        "with torch.inference_mode():\n"
        "    ids = loaded.model.generate(**loaded.processor(images=example(), return_tensors='pt'), max_new_tokens=5)\n"
        "print('ordinary', ids.tolist(), file=sys.stdout)",
        tiny_models / "caption",
        PREBAKE_DEFER="0",
    )
    assert said == plain


IN_THE_FRAMEWORKS = """
import json, pathlib
from prebake import Models
models = Models(sys.argv[1])
models.start()
models.wait()
print(json.dumps(deferred.report()))
"""


@pytest.mark.skipif(
    version("transformers") < "5", reason="transformers 4 uses distributed tensors while it is imported"
)
def test_the_frameworks_get_stand_ins_and_a_start_of_all_models_uses_none(tiny_models: Path) -> None:
    report = json.loads(python_says(PREAMBLE + IN_THE_FRAMEWORKS, tiny_models))
    assert [name for name, user in report.items() if user] == []
    assert {
        "jinja2", "scipy", "skimage", "torch._dynamo", "torch.distributed.tensor", "torch.distributions",
        "torch.export", "torch.masked", "torch.optim", "torch.testing", "torchvision.datasets", "torchvision.io",
        "torchvision.models",
        "transformers.distributed.checkpoint", "transformers.distributed.fsdp", "transformers.quantizers",
    } <= report.keys()  # fmt: skip


AFTERWARDS = (
    IN_THE_FRAMEWORKS
    + """
import functools, inspect
import scipy
assert not hasattr(scipy, "nope")
try:
    from scipy.special import missing
except ImportError as error:
    assert error.name == "scipy.special"
else:
    raise AssertionError("there is no such name")
from scipy.sparse import spmatrix
assert inspect.isclass(spmatrix)
@functools.singledispatch
def kind(value): return "another"
@kind.register
def _(value: spmatrix): return "sparse"
assert (kind(scipy.sparse.lil_matrix((2, 2))), kind(1)) == ("sparse", "another")
import skimage.transform, torch
assert not hasattr(skimage.transform, "nope") and not hasattr(torch.optim, "nope")
assert inspect.isclass(torch.distributions.Normal) and not hasattr(torch._dynamo, "nope")
from transformers.quantizers import HfQuantizer
assert inspect.isclass(HfQuantizer)
import transformers
assert not hasattr(transformers.quantizers, "nope")
"""
)


def test_a_service_that_imports_the_same_packages_gets_the_real_ones(tiny_models: Path) -> None:
    python_says(PREAMBLE + AFTERWARDS, tiny_models)


def test_a_library_on_the_list_that_only_names_a_package_does_not_import_it() -> None:
    said = python_says(
        PREAMBLE + "from prebake.families import compat\ncompat.torchvision_operators()\nimport sentence_transformers\n"
        "print([deferred.report()[name] for name in ('scipy', 'sklearn')])"
    )
    assert said.splitlines()[-1] == "[None, None]"


@pytest.mark.skipif(
    version("transformers") < "5", reason="transformers 4 uses distributed tensors while it is imported"
)
def test_a_mapped_start_and_an_answer_import_neither_compilers_nor_distributed_tensors(tiny_models: Path) -> None:
    """What the deferral is for."""
    said = python_says(
        PREAMBLE + "import prebake, torch\nfrom image_analyzer.example import example\n"
        "loaded = prebake.Models(sys.argv[1])['caption']\n"
        "inputs = loaded.processor(images=example(), return_tensors='pt')\n"
        "with torch.inference_mode(): loaded.model.generate(**inputs, max_new_tokens=3)\n"
        "heavy = ('scipy', 'sympy', 'torch._dynamo', 'torch.distributed.tensor', 'torch.export')\n"
        "print([name for name in heavy if deferred.report().get(name)])",
        tiny_models,
    )
    assert said == "[]"
