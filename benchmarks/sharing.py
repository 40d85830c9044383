"""Memory of several services on one host: the sum of their proportional set sizes (PSS), naive and baked.

Measured when all are ready, and again after each has answered once and so touched its weights; both times after three
seconds without requests. A page mapped by four processes counts as a quarter in each, so the sum is the memory that the
host uses.
"""

from __future__ import annotations

import argparse
import json
import urllib.request
from pathlib import Path

import launchers
from image_analyzer.example import FILE
from prebake.watching.proc import session
from prebake_build.measure.compare import Launcher, Service
from prebake_build.measure.report import machine, versions

DEMO = Path(__file__).parent.parent / "dist" / "demo"
IDLE = 3.0
KINDS = ("Pss", "Pss_Anon", "Pss_File")


def proportional(pid: int) -> dict[str, int]:
    """Proportional set size (PSS) by kind, in bytes."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    found = {line.partition(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.partition(":")[0] in KINDS}
    return {kind: found[kind] for kind in KINDS}


def added(services: list[Service]) -> dict[str, int]:
    """The sums over all services, by kind."""
    pids = [pid for service in services for pid in session(service.pid)]  # type: ignore[attr-defined]
    sizes = [proportional(pid) for pid in pids]
    return {kind: sum(size[kind] for size in sizes) for kind in KINDS}


def together(launcher: Launcher, number: int) -> dict[str, dict[str, int]]:
    """Start this many services and measure the sums when they are ready, and after each has answered."""
    import time

    picture = FILE.read_bytes()
    services: list[Service] = []
    try:
        for _ in range(number):
            service = launcher.launch()
            services.append(service)
            while True:
                try:
                    with urllib.request.urlopen(service.addresses()[0] + "/readyz", timeout=60):
                        break
                except OSError:
                    time.sleep(0.05)
        time.sleep(IDLE)
        ready = added(services)
        for service in services:
            urllib.request.urlopen(service.addresses()[0] + "/caption", data=picture, timeout=120).close()
        time.sleep(IDLE)
        return {"ready": ready, "answered": added(services)}
    finally:
        for service in services:
            service.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--services", type=int, default=4)
    parser.add_argument("--output", type=Path, default=DEMO.parent / "sharing.json")
    options = parser.parse_args()
    both = (launchers.naive(DEMO / "checkpoints"), launchers.baked(DEMO / "models"))
    sums = {launcher.label: together(launcher, options.services) for launcher in both}
    print(f"{options.services} services, sum of proportional set sizes, MB")
    for state in ("ready", "answered"):
        for label, sums_of in sums.items():
            cells = "".join(f"{kind}: {size / 1e6:>8,.0f}   " for kind, size in sums_of[state].items())
            print(f"{state:10}{label:8}{cells}")
        print(f"{state:10}baked / naive: {sums['baked'][state]['Pss'] / sums['naive'][state]['Pss']:.2f}")
    document = {"services": options.services, "versions": versions(), "machine": machine(), "sums": sums}
    options.output.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
