"""Bakes and loads a tiny model of every known architecture, and compares it with `from_pretrained`; table and JSON.

The architectures and the checks are in `tests/helpers/known_architectures.py` and
`tests/helpers/architecture_checks.py`; the tests make the same checks. `--markdown docs/architectures.md` writes the
published table.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

if TYPE_CHECKING:
    from helpers.architecture_checks import Outcome
    from helpers.tiny_models import Architecture


def outcomes(names: list[str]) -> tuple[list[Outcome], dict[str, str]]:
    """The outcome of each architecture, and the ones left out, with the reason."""
    import transformers

    from helpers.architecture_checks import name_of
    from helpers.known_architectures import ARCHITECTURES

    found, left_out = [], {}
    for number, architecture in enumerate(ARCHITECTURES):
        name = name_of(architecture)
        if names and not any(part in name for part in names):
            continue
        if not hasattr(transformers, architecture.class_):
            left_out[name] = "this version of transformers lacks it"
        elif int(transformers.__version__.partition(".")[0]) < architecture.since:
            left_out[name] = "this version of transformers does not load what it saved"
        else:
            found.append(_outcome(architecture, number))
            print(_line(found[-1]), flush=True)
    return found, left_out


def _outcome(architecture: Architecture, number: int) -> Outcome:
    from helpers.architecture_checks import Outcome, check

    folder = Path(tempfile.mkdtemp(prefix="architecture."))
    try:
        return check(architecture, number, folder)
    except Exception as error:  # failures are rows of the table too
        return Outcome(
            class_=architecture.class_, group=architecture.group, model_type="", dtype=architecture.dtype, form="",
            parameters=0, tier="none", structure=False, reason=f"{type(error).__name__}: {error}",
        )  # fmt: skip
    finally:
        shutil.rmtree(folder)


def _line(outcome: Outcome) -> str:
    verdict = "equal" if not outcome.differences else outcome.differences[0]
    return (f"{outcome.class_:44} {outcome.group:18} {outcome.dtype:9} {outcome.form:19} {outcome.tier:9} "
            f"{outcome.reason or verdict}")  # fmt: skip


def markdown(found: list[Outcome], left_out: dict[str, str], versions: dict[str, str]) -> str:
    """The table of `docs/architectures.md`."""
    tiers = Counter(outcome.tier for outcome in found)
    equal = sum(not outcome.differences for outcome in found)
    lines = [
        "# Architectures",
        "",
        "Written by `benchmarks/architectures.py --markdown docs/architectures.md`; the tests assert each row. With "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + ".",
        "",
        f"{len(found)} models of {len({outcome.model_type for outcome in found})} architectures, tiny and with random "
        f"weights: {', '.join(f'{count} {tier}' for tier, count in tiers.items())}; {equal} equal to `from_pretrained` "
        "in every bit of every tensor (those that upstream does not save too), of every output of a forward pass "
        "(each layer's hidden states among them) and of generated tokens, and in configuration, generation "
        "configuration, mode, frozen parameters, and keys of "
        f"the state dict. {sum(outcome.structure for outcome in found)} come from their structure, the others run "
        "their constructors: weight norms, closures and hooks are not data.",
        "",
        "The reference is `from_pretrained` of the same checkpoint, each tensor where torch's allocator would put it. "
        "`from_pretrained` maps files at whatever alignment the file has, and kernels sum in another order "
        "there: its own outputs of one model vary with the container in their last bits.",
        "",
        *(f"Left out: {name}: {why}." for name, why in left_out.items()),
        *([""] if left_out else []),
        "| group | class | type | checkpoint | tier | built from | compared | equal |",
        "|---|---|---|---|---|---|---|---|",
        *map(_row, found),
    ]
    return "\n".join(lines) + "\n"


def _row(outcome: Outcome) -> str:
    compared = f"{outcome.outputs} outputs" + (f", {outcome.tokens} tokens" if outcome.tokens else "")
    tier = outcome.tier + (f": {outcome.reason}" if outcome.reason else "")
    equal = "yes" if not outcome.differences else outcome.differences[0]
    source = "structure" if outcome.structure else "constructor"
    cells = (outcome.group, outcome.class_, outcome.dtype, outcome.form, tier, source, compared, equal)
    return f"| {' | '.join(cells)} |"


def main() -> int:
    """Exit code 1 if a model is not mapped or not equal."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="only classes whose name contains one of these")
    parser.add_argument("--output", type=Path, metavar="FILE", default=ROOT / "dist" / "architectures.json")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the published table")
    options = parser.parse_args()
    _quiet()
    versions = _versions()
    started = time.monotonic()
    found, left_out = outcomes(options.names)
    document: dict[str, Any] = {
        "versions": versions,
        "machine": platform.machine(),
        "seconds": round(time.monotonic() - started, 1),
        "architectures": [outcome.to_dict() for outcome in found],
        "left_out": left_out,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    if options.markdown:
        options.markdown.write_text(markdown(found, left_out, versions), encoding="utf-8")
    good = sum(outcome.tier == "mapped" and not outcome.differences for outcome in found)
    print(f"{good} of {len(found)} mapped and equal, {len(left_out)} left out, in {document['seconds']} s")
    return 0 if good == len(found) else 1


def _quiet() -> None:
    from prebake.families import compat

    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    compat.torchvision_operators()
    import torch
    import transformers

    torch.set_num_threads(1)  # more threads do not help models of this size
    transformers.logging.disable_progress_bar()


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {"Python": platform.python_version(), **{name: version(name) for name in ("torch", "transformers")}}


if __name__ == "__main__":
    sys.exit(main())
