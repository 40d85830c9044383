"""Generated vocabularies with the real sizes and layouts: WordPiece like BERT's, byte-level BPE like BART's.

Words are made of syllables (`kapilo`), so a dummy model's answer differs visibly from its input; text in the real
alphabet can still be tokenized.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice, product
from typing import Any

_SYLLABLES = tuple("".join(pair) for pair in product("bdfgklmnprstvz", "aeiou"))
_STRIDE = 7919
"""A prime that does not divide the number of words: steps of this size visit every word once, in mixed order."""

_ASCII = tuple(chr(code) for code in range(33, 127) if not chr(code).isupper())
SPACE = "\u0120"
"""Byte-level BPE's symbol for a space."""


def _words() -> Iterator[tuple[str, str, str]]:
    """Every word of three syllables, once."""
    base = len(_SYLLABLES)
    for index in range(base**3):
        first, rest = divmod(index * _STRIDE % base**3, base**2)
        yield _SYLLABLES[first], _SYLLABLES[rest // base], _SYLLABLES[rest % base]


def wordpiece(size: int) -> tuple[list[str], int]:
    """BERT's layout: `[PAD]` 0, `[UNK]` 100 to `[MASK]` 103, unused ones, characters, continuations, words.

    Returns the tokens, and the index of the first whole word.
    """
    unused = (f"[unused{index}]" for index in range(size))
    head = [
        "[PAD]",
        *islice(unused, 99),
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *islice(unused, 895 if size > 9999 else 0),
    ]
    head += [*_ASCII, *(f"##{character}" for character in _ASCII), *(f"##{syllable}" for syllable in _SYLLABLES)]
    return head + ["".join(word) for word in islice(_words(), size - len(head))], len(head)


def wordpiece_document(vocabulary: Sequence[str]) -> dict[str, Any]:
    """`tokenizer.json` of an uncased BERT."""
    ids = {token: index for index, token in enumerate(vocabulary)}
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

    def piece(name: str, kind: int) -> dict[str, Any]:
        key = "SpecialToken" if name.startswith("[") else "Sequence"
        return {key: {"id": name, "type_id": kind}}

    single = [piece("[CLS]", 0), piece("A", 0), piece("[SEP]", 0)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(ids[token], token, normalized=False) for token in special],
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
                       "strip_accents": None, "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": single,
            "pair": [*single, piece("B", 1), piece("[SEP]", 1)],
            "special_tokens": {
                token: {"id": token, "ids": [ids[token]], "tokens": [token]} for token in ("[CLS]", "[SEP]")
            },
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100, "vocab": ids},
    }  # fmt: skip


def byte_alphabet() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes, in the order of the bytes."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def byte_level_bpe(size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """BART's layout: `<s>` 0 to `<unk>` 3, the bytes, the merges' results, four leftovers, `<mask>` last.

    Returns token → id, and the merges in their order.
    """
    head = ["<s>", "<pad>", "</s>", "<unk>", *byte_alphabet()]
    tail = ["<|endoftext|>", "madeupword0000", "madeupword0001", "madeupword0002", "<mask>"]
    merges = list(islice(_merges(), size - len(head) - len(tail)))
    tokens = [*head, *(left + right for left, right in merges), *tail]
    return {token: index for index, token in enumerate(tokens)}, merges


def _merges() -> Iterator[tuple[str, str]]:
    """The merges; each joins two existing tokens: bytes, syllables, pairs, then words."""
    return chain(
        ((syllable[0], syllable[1]) for syllable in _SYLLABLES),
        ((SPACE, syllable) for syllable in _SYLLABLES),
        ((SPACE + first, second) for first, second in product(_SYLLABLES, repeat=2)),
        product(_SYLLABLES, _SYLLABLES),
        ((SPACE + first + second, third) for first, second, third in _words()),
    )


def byte_level_document(
    vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]], added: Sequence[str]
) -> dict[str, Any]:
    """`tokenizer.json` of a BART whose `added` special tokens follow its vocabulary."""
    special = [
        *(_added(vocabulary[token], token, normalized=True) for token in ("<s>", "<pad>", "</s>", "<unk>")),
        _added(vocabulary["<mask>"], "<mask>", normalized=True, lstrip=True),
        *(_added(len(vocabulary) + index, token, normalized=False) for index, token in enumerate(added)),
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": {"type": "RobertaProcessing", "sep": ["</s>", vocabulary["</s>"]],
                           "cls": ["<s>", vocabulary["<s>"]], "trim_offsets": True, "add_prefix_space": False},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
                  "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": dict(vocabulary), "merges": [" ".join(merge) for merge in merges]},
    }  # fmt: skip


def _added(index: int, content: str, *, normalized: bool, lstrip: bool = False) -> dict[str, Any]:
    return {"id": index, "content": content, "single_word": False, "lstrip": lstrip, "rstrip": False,
            "normalized": normalized, "special": True}  # fmt: skip
