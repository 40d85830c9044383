"""A stand-in for what is not imported yet: whatever is done with it gives what the real thing gives."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
import typing
from collections.abc import Callable
from typing import Any

import pytest

from prebake.startup import standins
from prebake.startup.deferred import report, resolved


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
    import lazy  # type: ignore[import-not-found]
    import lazy.part  # type: ignore[import-not-found]

    assert imports == []
    assert use(lazy) == expected
    assert imports[0] == "lazy"
    assert report()["lazy"]


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
