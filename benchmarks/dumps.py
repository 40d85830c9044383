"""Two dumps of the same service: how much of them is equal, and what differs, by kind of memory.

Pages are compared by their address, in words of 8 bytes. Each line adds to the one before: as it is; without address
randomisation (`setarch --addr-no-randomize`, which Docker's seccomp profile forbids in builds); with a fixed hash seed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from prebake.snapshot import programs
from prebake.snapshot.folder import IMAGE, read_table
from prebake.snapshot.table import MEMORY_IMG, PAGE, Table
from starts import DEMO

SETTINGS: tuple[tuple[str, list[str], dict[str, str]], ...] = (
    ("as it is", [], {}),
    ("fixed addresses", ["setarch", "--addr-no-randomize"], {}),
    ("and a fixed hash seed", ["setarch", "--addr-no-randomize"], {"PYTHONHASHSEED": "0"}),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=DEMO / "models", metavar="DIR")
    parser.add_argument("--folder", type=Path, default=DEMO / "dumps", help="where the snapshots go")
    parser.add_argument("--settings", type=int, default=len(SETTINGS), metavar="N", help="only the first N lines")
    options = parser.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    programs.build(options.folder / "programs")
    for title, before, variables in SETTINGS[: options.settings]:
        pair = [dump(options.folder / f"{title}-{number}", options, before, variables) for number in (1, 2)]
        print(f"{title}: {compared(*pair)}", flush=True)


def dump(output: Path, options: argparse.Namespace, before: list[str], variables: dict[str, str]) -> Path:
    """A snapshot of the reference service in this folder."""
    serve = [sys.executable, "-m", "prebake", "serve", "--root", str(options.models.absolute()), "--port", "8765"]
    command = [*before, sys.executable, "-m", "prebake", "snapshot", "--output", str(output), "--", *serve]
    environment = {**os.environ, **variables, programs.ENV: str((options.folder / "programs").absolute())}
    subprocess.run(command, env=environment, check=True, stderr=subprocess.DEVNULL)
    return output


def compared(one: Path, other: Path) -> str:
    """How many pages of the first are equal in the second, and how many words of the others."""
    tables, images = [read_table(each) for each in (one, other)], [(each / IMAGE).read_bytes() for each in (one, other)]
    places = [dict(pages(table)) for table in tables]
    counts: Counter[str] = Counter()
    for address, (kind, offset) in places[0].items():
        found = places[1].get(address)
        if found is None:
            counts[f"{kind}: at no such address"] += 1
            continue
        contents = [images[0][offset : offset + PAGE], images[1][found[1] : found[1] + PAGE]]
        if contents[0] == contents[1]:
            counts[f"{kind}: equal"] += 1
            continue
        counts[f"{kind}: different"] += 1
        words = [array("Q", content) for content in contents]
        counts["words that differ in different pages"] += sum(a != b for a, b in zip(*words, strict=True))
    cells = [f"{name} {count:,}" for name, count in sorted(counts.items())]
    sizes = " and ".join(f"{len(image) / 1e6:.1f}" for image in images)
    return f"{sizes} MB; pages: {'; '.join(cells)}; {anywhere(tables, images)}"


def anywhere(tables: list[Table], images: list[bytes]) -> str:
    """How many pages have the contents of some page of the other dump, by what they are mapped as."""
    known = {images[1][at : at + PAGE] for at in range(0, len(images[1]), PAGE)}
    same, all_of = Counter[str](), Counter[str]()
    for _, (kind, offset) in pages(tables[0]):
        all_of[kind] += 1
        same[kind] += images[0][offset : offset + PAGE] in known
    return "with contents of any page of the other: " + ", ".join(f"{kind} {same[kind]:,} of {all_of[kind]:,}"
                                                                  for kind in sorted(all_of))  # fmt: skip


def pages(table: Table) -> Iterator[tuple[int, tuple[str, int]]]:
    """Address of each page of memory.img, its kind, and its offset there."""
    heap_begin, heap_end = table.memory[4], table.memory[5]
    for mapping in table.mappings:
        if mapping.file == MEMORY_IMG:
            kind = "heap" if heap_begin <= mapping.start < heap_end else "other"
            for at in range(0, mapping.bytes, PAGE):
                yield mapping.start + at, (kind, mapping.offset + at)


if __name__ == "__main__":
    main()
