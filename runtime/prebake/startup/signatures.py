"""Signatures of numba's functions as text, in numba's own notation: `Array(float32, 2, 'C', False, aligned=True)`.

numba keeps a compiled function for each tuple of argument types. What `f.signatures` prints of them is written down by
`encode`, and read by `decode`, which calls nothing but the constructors in `_MADE`.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

_MADE = {"Array": "Array", "UniTuple": "UniTuple", "Tuple": "Tuple", "omitted": "Omitted"}
"""Name in the notation → the type's constructor in `numba.types`."""


def encode(types: Sequence[Any]) -> str | None:
    """The argument types as text; None if one of them is of a kind that the notation does not know."""
    text = ", ".join(map(repr, types))
    try:
        return text if decode(text) == tuple(types) else None
    except ValueError:
        return None


def decode(text: str) -> tuple[Any, ...]:
    """The argument types of a text from `encode`. Raises ValueError that says which part is wrong."""
    try:
        call = ast.parse(f"f({text})", mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"{text!r} is not a list of types") from error
    if not isinstance(call, ast.Call) or call.keywords or not isinstance(call.func, ast.Name):
        raise ValueError(f"{text!r} is not a list of types")
    return tuple(_type(node) for node in call.args)


def _type(node: ast.expr) -> Any:
    from numba import types

    found = None
    if isinstance(node, ast.Name):
        found = getattr(types, "boolean" if node.id == "bool" else node.id, None)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _MADE:
        arguments = [_value(each) for each in (*node.args, *(each.value for each in node.keywords if not _named(each)))]
        named = {str(each.arg): _value(each.value) for each in node.keywords if _named(each)}
        try:
            found = getattr(types, _MADE[node.func.id])(*arguments, **named)
        except Exception as error:  # of whatever kind: numba has its own
            raise ValueError(f"{ast.unparse(node)!r} is not a type: {error}") from error
    if not isinstance(found, types.Type):
        raise ValueError(f"{ast.unparse(node)!r} is not a type that can be written down")
    return found


def _named(argument: ast.keyword) -> bool:
    """Whether the constructor knows the argument by the name that the notation has: not so `omitted(default=1)`."""
    return argument.arg != "default"


def _value(node: ast.expr) -> Any:
    """An argument of a constructor: a type, a tuple of types, or a number, text, truth value or None."""
    if isinstance(node, ast.Tuple):
        return tuple(_value(each) for each in node.elts)
    if isinstance(node, (ast.Name, ast.Call)):
        return _type(node)
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise ValueError(f"{ast.unparse(node)!r} is neither a type nor a value") from error
