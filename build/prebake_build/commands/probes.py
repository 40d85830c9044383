"""`prebake probes`: Kubernetes' probes and memory from measured starts."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from prebake.commands.arguments import HelpFormatter
from prebake_build.deploying.probes import Measured, Wanted, grace, patch, reasons, settings

if TYPE_CHECKING:
    from prebake_build.commands import Commands

_EPILOG = """\
examples:
  prebake measure --image app --baseline plain --output dist     writes dist/startup.json
  prebake probes --from dist/startup.json                        the part of a container
  prebake probes --from dist/startup.json --patch prebake > deploy/kubernetes/base/probes.yaml

Measure on the kind of node that will run it, and cold (after a pull) where pods start on fresh nodes.

exit codes: 0 printed; 1 a file that cannot be read; 2 wrong use
"""


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "probes", help="derive Kubernetes' probes and memory from measured starts", epilog=_EPILOG,
        description="Derive startup, readiness and liveness probes, memory requests and limits from the starts that "
        "prebake measure recorded: the slowest of them, times a margin.",
        formatter_class=HelpFormatter,
    )  # fmt: skip
    parser.add_argument("--from", dest="file", type=Path, required=True, metavar="FILE",
                        help="startup.json of prebake measure")  # fmt: skip
    parser.add_argument("--service", metavar="LABEL", help="which of its services (default: the measured one)")
    parser.add_argument("--margin", type=float, default=3, help="factor on times (default: %(default)g)")
    parser.add_argument("--memory-margin", type=float, default=1.25, metavar="FACTOR",
                        help="factor on private memory (default: %(default)g)")  # fmt: skip
    parser.add_argument("--port", type=int, default=8000, help="default: %(default)s")
    parser.add_argument("--ready", metavar="PATH", default="/readyz", help="readiness (default: %(default)s)")
    parser.add_argument("--live", metavar="PATH", default="/livez", help="liveness (default: %(default)s)")
    parser.add_argument("--drain", type=float, default=30, metavar="S",
                        help="seconds that a stopped service finishes requests (default: %(default)g)")  # fmt: skip
    parser.add_argument("--patch", metavar="DEPLOYMENT", help="print a kustomize patch of this Deployment")
    parser.add_argument("--container", metavar="NAME", help="its container (default: the Deployment's name)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of YAML")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    import yaml

    measured = Measured.read(options.file, options.service)
    wanted = Wanted(margin=options.margin, memory_margin=options.memory_margin, port=options.port,
                    ready_path=options.ready, live_path=options.live)  # fmt: skip
    document = settings(measured, wanted)
    if options.patch:
        document = patch(document, name=options.patch, container_name=options.container or options.patch,
                         grace_seconds=grace(measured, wanted, options.drain))  # fmt: skip
    if options.json:
        print(json.dumps(document, indent=2))
        return 0
    for line in reasons(measured, wanted):
        print(f"# {line}")
    print(yaml.safe_dump(document, sort_keys=False), end="")
    return 0
