"""Changes that keep enough of a document right to get past its parser: random bytes hardly ever are JSON or TOML.

Each function takes a document and a source of random numbers, and gives another document. libFuzzer keeps those that
reach new code, and changes them again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

import tomli_w

from prebake.baked.header import ITEM_SIZES
from prebake.documents import toml

Mutator = Callable[[bytes, Random], "bytes | None"]
"""A changed document, or None where this one is too broken to be changed by its structure."""

ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 8, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63), 10**400, 0.0, -0.0, 0.5, 1e308,
    "", ".", "..", "../x", "/etc/passwd", "a/../b", "a//b", "a\\b", "c:x", "model.safetensors", "\0", "é", "a\n",
    "\ud800", "x" * 100, "ab" * 32, "AB" * 32, "sha256:" + "ab" * 32, "commit:" + "0" * 40, "hf:org/name@main",
    "easyocr:ko+en", "path:.", "url:https://x/y#sha256=" + "ab" * 32, "dummy:blip-base?size=tiny", "torch:a.b:c",
    "transformers:BertModel", [], {}, [[]], [{}], {"": None}, [0, 0], [0, 4], *ITEM_SIZES,
)  # fmt: skip
"""Values at the edges of what documents hold."""


def _slots(node: Any) -> list[tuple[Any, Any]]:
    """Every place in a document: container, and key or index."""
    found: list[tuple[Any, Any]] = []
    open_: list[Any] = [node]
    while open_ and len(found) < 10_000:
        at = open_.pop()
        keys = at.keys() if isinstance(at, dict) else range(len(at)) if isinstance(at, list) else ()
        found += [(at, key) for key in keys]
        open_ += [at[key] for key in keys]
    return found


def change_values(document: Any, random: Random) -> Any:
    """One to three places of the document changed: replaced, taken away, renamed, copied, counted up or down."""
    for _ in range(random.randint(1, 3)):
        places = _slots(document)
        if not places:
            return random.choice(ODD)
        at, key = random.choice(places)
        other, other_key = random.choice(places)
        match random.randrange(7):
            case 0:
                del at[key]
            case 1 if isinstance(at, dict):
                at[random.choice([str(other_key), "format", "more", "__metadata__", "", "\ud800"])] = at.pop(key)
            case 2:
                at[key] = json.loads(json.dumps(other[other_key], default=str))  # a copy, so that no loop can arise
            case 3 if isinstance(at[key], int):
                at[key] += random.choice([-8, -1, 1, 4, 8])
            case 4 if isinstance(at[key], str):
                text, cut = at[key], random.randint(0, len(at[key]))
                at[key] = text[:cut] + str(random.choice(ODD))[:10] + text[cut + random.randint(0, 2) :]
            case 5 if isinstance(at[key], list):
                at[key] = at[key] * 2
            case _:
                at[key] = json.loads(json.dumps(random.choice(ODD)))
    return document


def change_json(data: bytes, random: Random) -> bytes | None:
    """JSON with changed values, and sometimes with what Python's writer never writes."""
    try:
        text = json.dumps(change_values(json.loads(data), random), ensure_ascii=random.random() < 0.5)
        match random.randrange(20):
            case 0:
                text = text.replace(":", ":" + "[" * 3000, 1)
            case 1:
                text = text.replace("{", '{"files":1,', 1)
            case 2:
                text = text.replace(": ", ": \\ud800NaN"[: random.randint(2, 11)], 1)
        return text.encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError, TypeError):
        return None


def change_header(data: bytes, random: Random) -> bytes | None:
    """A safetensors file with changed values; its lengths are made to fit again, mostly."""
    length = int.from_bytes(data[:8], "little")
    text, body = change_json(data[8 : 8 + length], random), data[8 + length :]
    if text is None:
        return None
    if random.random() < 0.3:
        body = bytes(random.choice([0, 4, 24, 28, 32, 64]))
    announced = len(text) if random.random() < 0.9 else random.choice([0, len(text) - 1, 2**32, 2**64 - 1])
    return max(announced, 0).to_bytes(8, "little") + text + body


def change_toml(data: bytes, random: Random) -> bytes | None:
    """TOML with changed values, or with a line put elsewhere, or a number that only TOML can spell."""
    try:
        text = data.decode()
        if random.random() < 0.4:
            lines = text.splitlines(keepends=True) or ["\n"]
            at = random.randrange(len(lines))
            key = lines[at].partition("=")[0]
            odd = [
                "0x" + "f" * 5000,
                "9" * 5000,
                "[" * 2000,
                "inf",
                "nan",
                "1979-05-27",
                '"""a\nb"""',
                "{a.b=1}",
                "'\\x'",
            ]
            choice = random.choice([lines[at], random.choice(lines), "", f"{key}= {random.choice(odd)}\n"])
            lines[at : at + random.randint(0, 1)] = [choice]
            return "".join(lines).encode()
        return tomli_w.dumps(change_values(toml.loads(text), random)).encode()
    except (ValueError, RecursionError, TypeError, AttributeError):
        return None
