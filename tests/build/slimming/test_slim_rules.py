"""The rules that are shipped: whole, in an order that works, and narrow enough."""

from __future__ import annotations

import pytest

from prebake_build.slimming.rules import Patterns, Rule, read_rules


def deciding(path: str) -> str | None:
    """The rule that takes a path, conditions aside."""
    rules = read_rules()
    if rules.keep.match(path):
        return None
    return next((rule.name for rule in rules.rules if rule.matches(path)), None)


def test_names_are_unique_and_each_rule_says_why_and_what_breaks() -> None:
    rules = read_rules().rules
    assert len({rule.name for rule in rules}) == len(rules)
    assert [rule.name for rule in rules if len(rule.reason) < 20 or len(rule.breaks) < 6] == []


def test_what_is_stripped_is_decided_last_and_by_one_rule() -> None:
    assert [rule.name for rule in read_rules().rules if rule.action == "strip"] == ["symbols"]
    assert read_rules().rules[-1].name == "symbols"


def test_byte_code_goes_after_modules_and_never_of_a_package_that_the_requirements_name() -> None:
    rules = read_rules().rules
    first = next(number for number, rule in enumerate(rules) if rule.action == "uncompile")
    assert {rule.action for rule in rules[:first]} == {"remove"}
    for name in ("sympy", "networkx"):
        requested = f"{name}-1.14.0.dist-info/REQUESTED"
        (found,) = [rule for rule in rules if rule.package.patterns == (name,) and rule.action == "uncompile"]
        assert found.unless_path is not None
        assert found.unless_path.match(requested)


def rules_of_compilers() -> list[Rule]:
    return [rule for rule in read_rules().rules if any(pattern.endswith((".h", "/include/*", ".a", ".pxd"))
                                                       for pattern in rule.paths.patterns)]  # fmt: skip


def test_a_compiler_keeps_whatever_compilers_read() -> None:
    assert [rule.name for rule in rules_of_compilers() if "gcc" not in rule.unless_program] == []
    assert len(rules_of_compilers()) == 4


@pytest.mark.parametrize(
    ("path", "rule"),
    [
        ("torch/test/x", "torch-cpp-tests"),
        ("torch/bin/test_api", "torch-cpp-tests"),
        ("torch/bin/HashStoreTest", "torch-cpp-tests"),
        ("torch/bin/torch_shm_manager", None),
        ("torch/lib/libtorch_cpu.so", "symbols"),
        ("torch/testing/__init__.py", None),
        ("torch/testing/_internal/common_utils.py", "torch-testing"),
        ("torch/_inductor/ir.py", "inductor-byte-code"),
        ("torch/_inductor/config.py", None),
        ("torch/_dynamo/guards.py", None),
        ("sympy/core/expr.py", None),
        ("sympy/physics/units/systems/si.py", "sympy-byte-code"),
        ("pygments/lexers/python.py", None),
        ("setuptools/_distutils/version.py", None),
        ("transformers/models/bert/tokenization_bert.py", None),
        ("torch/utils/data/dataset.py", None),
        ("torch/_inductor/codegen/aoti_runtime/interface.cpp", "inductor-byte-code"),  # no module: nothing goes
        ("numpy/tests/test_x.py", "tests"),
        ("numpy/testing/__init__.py", None),
        ("jinja2/tests.py", None),
        ("a/tests/LICENSE.txt", None),
        ("a-1.0.dist-info/licenses/tests/x.h", None),
        ("a/py.typed", None),
        ("easyocr/character/ko_char.txt", None),
        ("transformers/convert_slow_tokenizer.py", None),
        ("transformers/models/bert/convert_bert_token_dropping_original_tf2_checkpoint_to_pytorch.py",
         "transformers-conversion"),
        ("transformers/models/bert/modeling_bert.py", None),
        ("cv2/cv2.abi3.so", "symbols"),
        ("x.libs/libgomp-a34b3233.so.1.0.0", "symbols"),
    ],
)  # fmt: skip
def test_which_rule_takes_a_file(path: str, rule: str | None) -> None:
    assert deciding(path) == rule


def test_a_star_stands_for_folders_too_and_other_signs_for_themselves() -> None:
    patterns = Patterns(["a/*.h", "b.c"])
    assert [patterns.match(path) for path in ("a/x/y.h", "a/y.hpp", "b.c", "bxc")] == [True, False, True, False]
    assert not Patterns([]).match("")
