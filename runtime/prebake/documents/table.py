"""Reads JSON and TOML into typed objects; every error names the file and the path inside it.

A `Table` wraps one mapping. Take its values by name and type, then call `finish()`, which refuses keys that were not
taken and suggests the nearest known key, or lists the known keys. Documents are parsed into types here, so no other
code handles `dict[str, Any]`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from prebake.documents.messages import KINDS, describe, listed, nearest, quote, reason, short, spelled
from prebake.errors import DocumentError, NewerFormatError

T = TypeVar("T")

_MISSING: Any = object()


class Table:
    """One mapping of a document and its place in the document.

    Messages begin with `where` (`models.toml: models.caption`). `error` is the exception class to raise, so a wrong
    configuration file and a damaged manifest lead to different exit codes.
    """

    def __init__(self, data: object, where: str, error: type[Exception] = DocumentError) -> None:
        if not isinstance(data, Mapping):
            raise error(f"{where}: expected a table, found {describe(data)}")
        self._data = data
        self._known: list[str] = []
        self.where = where
        self.error = error

    def at(self, key: str) -> str:
        """The path of `key` as messages show it."""
        return f"{self.where}{'.' if ': ' in self.where else ': '}{key}"

    def fail(self, key: str, message: str) -> Exception:
        """The error to raise about `key`."""
        return self.error(f"{self.at(key)}: {message}")

    def take(self, key: str, kind: type[T], default: T = _MISSING) -> T:
        """The value of `key`, checked to be of type `kind`; `default` if it is absent."""
        self._known.append(key)
        value = self._data.get(key, _MISSING)
        if value is _MISSING:
            if default is _MISSING:
                raise self.fail(key, f"is missing (expected {KINDS[kind]})")
            return default
        if kind is float and type(value) is int and abs(value) < 2**63:  # larger ones may overflow a float
            return cast(T, float(value))
        if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
            raise self.fail(key, f"expected {KINDS[kind]}, found {describe(value)}")
        return value

    def maybe(self, key: str, kind: type[T]) -> T | None:
        """Like `take`, with None for a key that is absent or null."""
        if self._data.get(key) is None:
            self._known.append(key)
            return None
        return self.take(key, kind)

    def raw(self, key: str) -> object:
        """The unchecked value of `key`, for values of several types; None if it is absent."""
        self._known.append(key)
        return self._data.get(key)

    def one_of(self, key: str, allowed: tuple[str, ...], default: str = _MISSING) -> str:
        """A string that must be one of `allowed`."""
        value = self.take(key, str, default)
        if value not in allowed:
            raise self.fail(key, f"{quote(value)} is not one of {', '.join(allowed)}{nearest(value, allowed)}")
        return value

    def table(self, key: str, default: Mapping[str, Any] = _MISSING) -> Table:
        """A nested table."""
        return Table(self.take(key, dict, cast(Any, default)), self.at(key), self.error)

    def items(self, key: str, read: Callable[[Table], T]) -> tuple[T, ...]:
        """A list of tables, each converted by `read`."""
        return tuple(read(Table(item, f"{self.at(key)}[{i}]", self.error))
                     for i, item in enumerate(self.take(key, list)))  # fmt: skip

    def strings(self, key: str, default: list[str] = _MISSING) -> tuple[str, ...]:
        """A list of strings."""
        values = self.take(key, list, cast(Any, default))
        for i, value in enumerate(values):
            if not isinstance(value, str):
                raise self.fail(f"{key}[{i}]", f"expected a string, found {describe(value)}")
        return tuple(values)

    def mapping(self, key: str, kind: type[T], default: Mapping[str, T] = _MISSING) -> dict[str, T]:
        """A table with arbitrary keys, whose values all have type `kind`."""
        inner = self.table(key, cast(Any, default))
        return {name: inner.take(name, kind) for name in inner}

    def __iter__(self) -> Iterator[str]:
        for key in self._data:
            if not isinstance(key, str):
                raise self.error(f"{self.where}: expected keys that are strings, found {describe(key)}")
            yield key

    def finish(self) -> None:
        """Raise the error for any key that was not taken."""
        for key in self:
            if key not in self._known:
                known = tuple(dict.fromkeys(self._known))
                raise self.fail(short(key), f"unknown key{nearest(key, known) or listed(known)}")


def read_json(path: Path, newest: int, what: str) -> Table:
    """A JSON document with a `format` number of at most `newest`.

    Raises DocumentError if it is missing, unreadable, not JSON or has no format, and NewerFormatError if a newer
    Prebake wrote it. The table's `format` key is already taken.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DocumentError(f"{path}: there is no such file (expected a {what})") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DocumentError(f"{path}: cannot read this {what}: {reason(error)}") from error
    return parse_json(text, str(path), newest, what)


def parse_json(text: str, where: str, newest: int, what: str) -> Table:
    """Like `read_json`, for a document that was read already; messages begin with `where`."""
    try:
        table = Table(_strict_json(text), where)
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"{where}: this {what} is not JSON: {error}") from error
    check_format(table, newest, what)
    return table


def _strict_json(text: str) -> object:
    """JSON as RFC 8259 defines it. Raises ValueError for what Python's parser accepts in addition: duplicate keys (the
    last would win), NaN and infinities, and lone surrogates, which can't be encoded."""

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        table: dict[str, object] = {}
        for key, value in pairs:
            if key in table:
                raise ValueError(f"duplicate key {quote(key)}")
            table[key] = value
        return table

    def no_number(name: str) -> object:
        raise ValueError(f"{name} is not a JSON number")

    document: object = json.loads(text, object_pairs_hook=unique, parse_constant=no_number)
    json.dumps(document, ensure_ascii=False).encode()
    return document


def check_format(
    table: Table, newest: int, what: str, mend: str = "update prebake, or bake again with this version"
) -> None:
    """Take `format` from the table and raise an error if this version can't read it.

    For a newer format, that is NewerFormatError, whose message ends with `mend`."""
    found = table.take("format", int)
    if found > newest:
        raise NewerFormatError(
            f"{table.at('format')}: this {what} has format {spelled(found)}, but this Prebake reads up to "
            f"{newest}: {mend}"
        )
    if found < 1:
        raise DocumentError(f"{table.at('format')}: {found} is not a valid format of a {what}")


def canonical_json(document: Mapping[str, Any]) -> str:
    """The canonical text of a document: sorted keys, two spaces, UTF-8, a newline at the end."""
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
