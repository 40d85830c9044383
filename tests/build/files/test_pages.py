"""Mapped pages are found in the kernel's list, with the range of the file that they are."""

from __future__ import annotations

from pathlib import Path

import torch

from prebake_build.files.pages import Mappings, Place, elements

SMAPS = """\
7f0000000000-7f0000004000 rw-p 00001000 fe:00 42                         /models/a b.safetensors
Size:                 16 kB
Anonymous:             0 kB
Swap:                  0 kB
VmFlags: rd wr mr mw me ac sd
7f0000004000-7f0000006000 rw-p 00000000 fe:00 43                         /models/changed
Anonymous:             4 kB
7f0000006000-7f0000008000 rw-p 00000000 fe:00 44                         /models/swapped
Anonymous:             0 kB
Swap:                  8 kB
7f0000008000-7f000000a000 rw-p 00000000 00:00 0                          [heap]
Anonymous:             0 kB
"""


def test_a_range_inside_one_mapping_is_a_place_in_its_file(tmp_path: Path) -> None:
    (tmp_path / "smaps").write_text(SMAPS)
    mappings = Mappings(tmp_path / "smaps")
    assert mappings.place(0x7F0000000010, 100) == Place(("fe:00", "42"), 0x1010, 100)
    assert mappings.place(0x7F0000000000, 0x4000) == Place(("fe:00", "42"), 0x1000, 0x4000)
    assert mappings.place(0x7F0000003FFF, 2) is None
    assert mappings.place(0x6F0000000000, 1) is None


def test_pages_that_are_no_longer_the_files_have_no_place(tmp_path: Path) -> None:
    (tmp_path / "smaps").write_text(SMAPS)
    mappings = Mappings(tmp_path / "smaps")
    assert [mappings.place(begin, 1) for begin in (0x7F0000004000, 0x7F0000006000, 0x7F0000008000)] == [None] * 3


def test_without_the_kernels_list_nothing_is_found(tmp_path: Path) -> None:
    assert Mappings(tmp_path / "none").place(0x7F0000000000, 1) is None


def test_only_plain_tensors_have_elements_as_a_file_holds_them() -> None:
    plain = torch.ones(2, 3)
    assert elements(plain) == (plain.data_ptr(), 24)
    assert elements(plain.t()) is None
    assert elements(torch.ones(2, dtype=torch.complex64).conj()) is None
    assert elements(torch.ones(2, device="meta")) is None
