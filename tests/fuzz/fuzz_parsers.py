"""Coverage-guided fuzzing of what reads a model folder, `models.lock` and `models.toml`; see CONTRIBUTING.md.

    python tests/fuzz/fuzz_parsers.py {header,manifest,lock,models-toml,object,structure} --seconds 240
    python tests/fuzz/fuzz_parsers.py header --reproduce FILE

Exit 0: nothing found. 1: a finding, with the file that shows it. 2: wrong use.

libFuzzer ends its process itself, whatever the reason. So the fuzzing is done by a child, and this process counts.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fuzz.targets import Target

ROOT = Path(__file__).parents[2]
NAMES = ("header", "manifest", "lock", "models-toml", "object", "structure")
INSTRUMENTED = ["prebake", "prebake_build", "tomllib", "json"]
HANGING = 20
"""Seconds that one input may take."""


def main(arguments: Sequence[str]) -> int:
    options = _options(arguments)
    if options.child:
        _fuzz(options)
    if options.reproduce:
        with _scratch() as folder:
            tempfile.tempdir = folder
            _reproduce(options)
        print(f"{options.target}: nothing is found with {options.reproduce}")
        return 0
    return _watch(options)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=NAMES)
    parser.add_argument("--seconds", type=int, default=60, help="how long to fuzz (default: 60)")
    parser.add_argument("--reproduce", type=Path, metavar="FILE", help="run one input, and end with its traceback")
    parser.add_argument(
        "--known", action="append", default=[], metavar="KIND",
        help="go on past findings of this kind, and count them: the name of an exception",
    )  # fmt: skip
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


# --- the child ---------------------------------------------------------------------------------------------------


def _target(options: argparse.Namespace, aside: dict[str, int]) -> Target:
    if options.target == "structure":
        from fuzz import structure_target

        return structure_target.target()
    if options.target == "object":
        from fuzz import object_target

        return object_target.target()
    from fuzz import targets

    return targets.TARGETS[options.target]()


def _reproduce(options: argparse.Namespace) -> None:
    target = _target(options, {})
    from fuzz.targets import limit_memory

    limit_memory()
    target.check(options.reproduce.read_bytes())


def _fuzz(options: argparse.Namespace) -> None:
    """Does not return: libFuzzer ends the process."""
    import atheris  # type: ignore[import-not-found, import-untyped, unused-ignore]

    aside = dict.fromkeys(options.known, 0)
    with atheris.instrument_imports(include=INSTRUMENTED):
        target = _target(options, aside)
    from fuzz.targets import limit_memory

    folder: Path = options.child
    corpus = folder / "corpus"
    corpus.mkdir()
    for at, seed in enumerate(target.seeds()):
        (corpus / f"seed-{at}").write_bytes(seed)
    limit_memory()
    last = [0.0]

    def check(data: bytes) -> None:
        try:
            target.check(data)
        except Exception as error:
            if type(error).__name__ not in aside:
                raise
            aside[type(error).__name__] += 1
        if aside and time.monotonic() > last[0] + 1:
            last[0] = time.monotonic()
            (folder / "aside").write_text(str(aside), encoding="ascii")

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        random = Random(seed)
        changed = target.mutate(data, random) if random.random() < 0.8 else None
        if changed is None or len(changed) > max_size:
            changed = atheris.Mutate(data, max_size)
        return bytes(changed)

    flags = [
        f"-max_total_time={options.seconds}", f"-max_len={target.max_size}", f"-timeout={HANGING}", "-rss_limit_mb=0",
        "-print_final_stats=1", "-verbosity=1", f"-artifact_prefix={folder}/", str(corpus),
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *flags], check, custom_mutator=mutate)
    atheris.Fuzz()


# --- the parent --------------------------------------------------------------------------------------------------


def _scratch() -> tempfile.TemporaryDirectory[str]:
    """In memory where there is such a file system: half a million files are written there."""
    memory = Path("/dev/shm")
    return tempfile.TemporaryDirectory(prefix="prebake-fuzz-", dir=memory if memory.is_dir() else None)


def _environment(scratch: str) -> dict[str, str]:
    path = [*(str(ROOT / part) for part in ("runtime", "build", "tests")), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, path)), "TMPDIR": scratch,
        "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip


def _watch(options: argparse.Namespace) -> int:
    folder = Path(tempfile.mkdtemp(prefix=f"prebake-fuzz-{options.target}-"))
    began = time.monotonic()
    with _scratch() as scratch:
        done = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--child", str(folder)], env=_environment(scratch),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False,
        )  # fmt: skip
    (folder / "log").write_text(done.stdout, encoding="utf-8")
    executions = [
        int(found) for found in re.findall(r"^(?:#|stat::number_of_executed_units: )(\d+)", done.stdout, re.M)
    ]
    edges = re.findall(r"cov: (\d+)", done.stdout)
    crashes = sorted(path for kind in ("crash", "timeout", "oom") for path in folder.glob(f"{kind}-*"))
    aside = folder / "aside"
    print(
        f"{options.target}: {executions[-1] if executions else 0:,} executions, {edges[-1] if edges else 0} edges, "
        f"{time.monotonic() - began:.0f} s, {len(crashes)} crashes"
        f"{', set aside ' + aside.read_text(encoding='ascii') if aside.exists() else ''}"
        f" (Python {platform.python_version()}, atheris {version('atheris')})"
    )
    if done.returncode == 0 and executions and not crashes:
        shutil.rmtree(folder)
        return 0
    print(f"ended with {done.returncode}; the end of {folder / 'log'}:\n{done.stdout[-3000:]}")
    for crash in crashes:
        print(f"to reproduce: python tests/fuzz/fuzz_parsers.py {options.target} --reproduce {crash}")
    return 1


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "runtime"), str(ROOT / "build")]
    sys.exit(main(sys.argv[1:]))
