"""Sizes and tables of text: one reader and one writer of each."""

from __future__ import annotations

import pytest

from prebake.documents.columns import columns
from prebake.documents.sizes import format_size, parse_size
from prebake.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("512", 512), ("512 B", 512), ("1k", 1000), ("1 KB", 1000), ("512MiB", 512 << 20),
     ("1.5 GB", 1_500_000_000), ("1.5 gb", 1_500_000_000), (" 2 TiB ", 2 << 40), ("0.5 Gi", 1 << 29)],
)  # fmt: skip
def test_sizes_with_and_without_units(text: str, size: int) -> None:
    assert parse_size(text, "--peak-memory") == size


@pytest.mark.parametrize("text", ["", "GB", "-1", "1,5 GB", "1e9", "5 i", "5 iB", "5 EB", "1 GB GB", "inf", "1.1.1"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_size(text, "--peak-memory")
    assert str(error.value) == f'--peak-memory: "{text}" is not a size (expected for example "1.5 GB" or "512 MiB")'


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1_234_567, "1.23 MB"), (5 * 10**12, "5 TB")]
)
def test_sizes_are_written_in_decimal_units(size: int, text: str) -> None:
    assert format_size(size) == text


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert columns([("a", "1", "x"), ("long", "20", "")], right=(1,)) == ["a      1  x", "long  20"]
    assert columns([]) == []
