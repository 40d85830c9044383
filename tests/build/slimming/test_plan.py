"""Which file goes by which rule, and what keeps it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from helpers.installed import environment, install, library
from prebake_build.slimming.apply import apply_plan
from prebake_build.slimming.plan import Plan, make_plan
from prebake_build.slimming.rules import Patterns, Rule, Rules

STRIP = "strip"


def rule(name: str, *paths: str, **given: Any) -> Rule:
    usual: dict[str, Any] = {
        "action": "remove", "package": "*", "reason": "r", "breaks": "b", "unless_imported": False,
        "unless_mentioned": None, "unless_program": (), "unless_path": None, "if_path": None, "besides": None,
    }  # fmt: skip
    values = usual | given
    for key in ("unless_path", "if_path", "besides"):
        values[key] = Patterns([values[key]]) if values[key] else None
    return Rule(name=name, paths=Patterns(paths), **(values | {"package": Patterns([values["package"]])}))


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return environment(tmp_path)


def planned(site: Path, *rules: Rule, keep: tuple[str, ...] = (), programs: tuple[str, ...] = ()) -> Plan:
    kept = Rules(keep=Patterns(["*.dist-info/*", "*LICENSE*"]), rules=rules)
    return make_plan(site, kept, keep=keep, which=lambda name: name if name in programs else None)


def taken(plan: Plan) -> Mapping[str, str]:
    return {change.path: change.rule.name for change in plan.changes}


TESTS = rule("tests", "*/tests/*", unless_imported=True)


def test_the_first_rule_that_matches_a_file_takes_it(site: Path) -> None:
    install(site, "a", {"a/x.h": "", "a/sub/y.h": "", "a/z.py": ""})
    plan = planned(site, rule("sub", "a/sub/*"), rule("headers", "*.h"))
    assert taken(plan) == {"a/sub/y.h": "sub", "a/x.h": "headers"}


def test_a_rule_of_a_package_takes_files_of_no_other(site: Path) -> None:
    install(site, "My_Torch", {"torch/x.h": ""})
    install(site, "other", {"torch/y.h": ""})
    assert taken(planned(site, rule("headers", "torch/*.h", package="my-torch"))) == {"torch/x.h": "headers"}


def test_only_files_that_a_record_lists_are_taken(site: Path) -> None:
    install(site, "a", {"a/x.h": ""})
    (site / "a" / "mine.h").write_text("")
    assert taken(planned(site, rule("headers", "*.h"))) == {"a/x.h": "headers"}


def test_what_a_link_leads_out_of_the_environment_is_not_taken(site: Path, tmp_path: Path) -> None:
    install(site, "a", {"a/in/x.h": "", "b/y.h": ""})
    (site / "b" / "y.h").unlink()
    (site / "b").rmdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "y.h").write_text("")
    (site / "b").symlink_to(tmp_path / "outside")
    assert taken(planned(site, rule("headers", "*.h"))) == {"a/in/x.h": "headers"}


def test_licences_and_what_the_caller_keeps_stay(site: Path) -> None:
    install(site, "a", {"a/tests/LICENSE": "", "a/tests/x.py": "", "a/tests/data/y.txt": ""})
    assert taken(planned(site, TESTS, keep=("a/tests/data/*",))) == {"a/tests/x.py": "tests"}


def test_the_bytes_are_those_of_the_file_and_of_its_byte_code(site: Path) -> None:
    install(site, "a", {"a/tests/x.py": "x" * 100})
    cache = site / "a" / "tests" / "__pycache__"
    cache.mkdir()
    (cache / "x.cpython-311.pyc").write_bytes(b"c" * 50)
    (cache / "xy.cpython-311.pyc").write_bytes(b"c" * 50)
    plan = planned(site, TESTS)
    assert [change.bytes for change in plan.changes] == [150]


def test_byte_code_that_a_record_lists_goes_with_its_module_and_only_then(site: Path) -> None:
    install(site, "a", {
        "a/__init__.py": "import a.tests.y", "a/tests/x.py": "x", "a/tests/__pycache__/x.cpython-311.pyc": "cc",
        "a/tests/y.py": "y", "a/tests/__pycache__/y.cpython-311.pyc": "cc",
    })  # fmt: skip
    plan = planned(site, TESTS)
    assert [(change.path, change.bytes) for change in plan.changes] == [("a/tests/x.py", 3)]
    apply_plan(plan)
    assert sorted(path.name for path in (site / "a" / "tests").rglob("*")) == [
        "__pycache__", "y.cpython-311.pyc", "y.py",
    ]  # fmt: skip
    assert "x.cpython-311.pyc" not in (site / "a-1.0.dist-info" / "RECORD").read_text()


# --- conditions -------------------------------------------------------------------------------------------------


def test_a_compiler_in_the_image_keeps_headers(site: Path) -> None:
    install(site, "a", {"a/x.h": ""})
    headers = rule("headers", "*.h", unless_program=("c++", "g++"))
    assert taken(planned(site, headers, programs=("g++",))) == {}
    assert taken(planned(site, headers, programs=("make",))) == {"a/x.h": "headers"}


@pytest.mark.parametrize(("condition", "there"), [("unless_path", False), ("if_path", True)])
def test_a_rule_may_hang_on_another_file(site: Path, condition: str, there: bool) -> None:
    install(site, "a", {"a/x.h": ""})
    headers = rule("headers", "*.h", **{condition: "torch/lib/*cuda*"})
    assert (taken(planned(site, headers)) == {}) is there
    install(site, "torch", {"torch/lib/libtorch_cuda.so": ""})
    assert (taken(planned(site, headers)) == {}) is not there


def test_packages_that_mention_their_stubs_keep_them(site: Path) -> None:
    install(site, "a", {"a/__init__.py": "attach_stub(__name__, __file__)", "a/__init__.pyi": ""})
    install(site, "b", {"b/__init__.py": "", "b/__init__.pyi": ""})
    stubs = rule("stubs", "*.pyi", unless_mentioned=re.compile(rb"attach_stub"))
    plan = planned(site, stubs)
    assert (taken(plan), plan.spared) == ({"b/__init__.pyi": "stubs"}, {"stubs": 1})


def test_what_a_module_imports_from_tests_stays_with_all_that_it_needs(site: Path) -> None:
    install(site, "a", {
        "a/__init__.py": "def run():\n    from .tests import helper\n", "a/tests/__init__.py": "",
        "a/tests/helper.py": "from a.tests.sub.more import x", "a/tests/sub/__init__.py": "",
        "a/tests/sub/more.py": "", "a/tests/sub/data.txt": "", "a/tests/test_a.py": "from a.tests import helper",
    })  # fmt: skip
    install(site, "b", {"b/tests/test_b.py": "import a.tests.test_a", "b/tests/data.txt": ""})
    plan = planned(site, TESTS)
    assert taken(plan) == dict.fromkeys(["a/tests/test_a.py", "b/tests/data.txt", "b/tests/test_b.py"], "tests")
    assert plan.spared == {"tests": 5}


def test_what_one_rule_removes_keeps_nothing_of_another(site: Path) -> None:
    install(site, "a", {"a/tests/x.py": "", "a/bench.py": "import a.tests.x"})
    assert set(taken(planned(site, rule("bench", "a/bench.py"), TESTS))) == {"a/tests/x.py", "a/bench.py"}


# --- byte code --------------------------------------------------------------------------------------------------


def compiled(site: Path, name: str) -> Path:
    """Byte code of a module of the package `a`, 50 bytes."""
    path = site / "a" / "__pycache__" / f"{name}.cpython-311.pyc"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"c" * 50)
    return path


def test_a_rule_may_take_the_byte_code_alone_and_spare_some_modules(site: Path) -> None:
    record = install(site, "a", {"a/x.py": "x" * 100, "a/y.py": "", "a/z.py": "", "a/data.txt": "",
                                 "a/__pycache__/x.cpython-311.pyc": "c" * 50})  # fmt: skip
    kept, gone = compiled(site, "y"), compiled(site, "x")
    plan = planned(site, rule("slow", "a/*", action="uncompile", besides="a/y.py"))
    assert [(change.path, change.bytes) for change in plan.changes] == [("a/x.py", 50)]
    apply_plan(plan)
    assert (kept.exists(), gone.exists(), (site / "a" / "x.py").read_text()) == (True, False, "x" * 100)
    assert "x.cpython-311.pyc" not in record.read_text()
    assert "a/x.py" in record.read_text()


def test_a_module_without_byte_code_still_keeps_what_it_imports(site: Path) -> None:
    install(site, "a", {"a/x.py": "import a.tests.y", "a/tests/y.py": ""})
    gone = compiled(site, "x")
    plan = planned(site, rule("slow", "a/*", action="uncompile"), TESTS)
    assert taken(plan) == {"a/x.py": "slow"}
    assert plan.spared == {"tests": 1}
    apply_plan(plan)
    assert not gone.parent.exists()


# --- libraries --------------------------------------------------------------------------------------------------

SYMBOLS = rule("symbols", "*.so", action=STRIP)
LIBRARY = library([(".text", b"t" * 100, True), (".symtab", b"s" * 9000, False)])


def test_libraries_are_stripped_and_count_what_they_lose(site: Path) -> None:
    install(site, "a", {"a/x.so": LIBRARY, "a/y.so": "no library", "a/tests/z.so": LIBRARY})
    plan = planned(site, TESTS, SYMBOLS)
    assert taken(plan) == {"a/x.so": "symbols", "a/tests/z.so": "tests"}
    change = next(change for change in plan.changes if change.path == "a/x.so")
    assert change.cut is not None
    assert 8500 < change.bytes == change.cut.saved < 9200


def test_a_library_that_a_condition_keeps_is_stripped_all_the_same(site: Path) -> None:
    install(site, "a", {"a/__init__.py": "import a.tests.x", "a/tests/x.py": "", "a/tests/y.so": LIBRARY})
    assert taken(planned(site, TESTS, SYMBOLS)) == {"a/tests/y.so": "symbols"}


def test_a_library_that_is_a_link_or_that_the_caller_keeps_stays_as_it_is(site: Path, tmp_path: Path) -> None:
    install(site, "a", {"a/x.so": LIBRARY, "a/y.so": LIBRARY})
    (site / "a" / "x.so").rename(tmp_path / "x.so")
    (site / "a" / "x.so").symlink_to(tmp_path / "x.so")
    assert taken(planned(site, SYMBOLS, keep=("a/y.so",))) == {}
