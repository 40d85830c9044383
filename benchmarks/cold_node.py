"""The cold node: from a registry behind a limited link to the first answer, on an engine with empty stores.

Needs root, iproute2, docker-registry (Debian's package) and a Docker engine that builds; makes a second engine for the
node, and a network namespace for registry and hub. Each start gets a new engine, so every byte comes over the link,
whose counter is printed. Contenders, started in turn:

- download   the naive service without weights, gzip; it downloads them from a hub at the other end of the link
- one layer  the naive service with its checkpoints in one layer, gzip
- baked …    Prebake's image: uncompressed, zstd, gzip; split: in layers of 256 MB
- volume     Prebake's service without weights, and the weights as an image that is mounted

`… v2` is a second version of the code on the node that has the first. `--prepare` builds and pushes to FOLDER first.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from hub_files import OWNER
from launchers import ask
from link import Link, Watch, ended
from node import Node
from prebake.watching.readiness import unready, wait
from prebake_build.measure.containers import ContainerService
from prebake_build.measure.report import machine
from starts import ratios, spread

ROOT = Path(__file__).resolve().parent.parent
REGISTRY_PORT, HUB_PORT, PORT = 5077, 5078, 8077
MODELS = ("caption", "ocr", "florence")
NAIVE = f"exec /opt/prebake/bin/python -m image_analyzer.naive --port {PORT} --checkpoints"
DOWNLOAD = "/opt/prebake/bin/python -c \"import huggingface_hub as hub; [hub.snapshot_download('{owner}/' + name, \
local_dir='/tmp/checkpoints/' + name) for name in '{models}'.split()]\" && {naive} /tmp/checkpoints"
SERVE = ["/opt/prebake/bin/prebake", "run", "--", "prebake", "serve", "--port", str(PORT)]
STEPS = ("link", "unpack", "create", "start", "ready", "answer")
"""The pull until the last bytes came, the rest of the pull, the container made, started, ready, the first answer."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """What is pulled, and how it is started."""

    image: str
    entrypoint: Sequence[str]
    weights: str = ""
    """An image that is mounted at /models."""
    second: str = ""
    """The image of the second version of the code."""


DOWNLOADING = ["sh", "-c", DOWNLOAD.format(owner=OWNER, models=" ".join(MODELS), naive=NAIVE)]
CONTENDERS = {
    "download": Contender(image="plain:gzip", entrypoint=DOWNLOADING, second="plain:v2"),
    "one layer": Contender(image="onelayer:gzip", entrypoint=["sh", "-c", f"{NAIVE} /checkpoints"]),
    "baked uncompressed": Contender(image="baked:uncompressed", entrypoint=SERVE, second="baked:v2"),
    "baked zstd": Contender(image="baked:zstd", entrypoint=SERVE),
    "baked zstd, split": Contender(image="baked:split", entrypoint=SERVE),
    "baked gzip": Contender(image="baked:gzip", entrypoint=SERVE),
    "volume": Contender(image="plain:uncompressed", entrypoint=SERVE, weights="weights:uncompressed"),
}
BUILT = [("runtime", "plain", "gzip"), ("baseline", "onelayer", "gzip"), ("image", "baked", "uncompressed"),
         ("image", "baked", "zstd"), ("image", "baked", "gzip"), ("runtime", "plain", "uncompressed"),
         ("weights", "weights", "uncompressed")]  # fmt: skip
"""Target, repository, compression."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("dist/cold-node"), help="registry's store, hub, engine")
    parser.add_argument("--prepare", action="store_true", help="build, push and fetch into FOLDER first")
    parser.add_argument("--megabits", type=int, default=1000, metavar="MBIT", help="of the link, per second (1000)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="NAME")
    parser.add_argument("--output", type=Path, default=Path("dist/cold-node.json"))
    options = parser.parse_args()
    folder: Path = options.folder.resolve()
    if options.prepare:
        prepare(folder)
    taken: dict[str, list[dict[str, float]]] = {}
    with Link(options.megabits) as link:
        link.serve(registry(folder, ""), folder / "registry.log")
        link.serve(hub(folder), folder / "hub.log")
        for url in (
            f"http://{link.address}:{REGISTRY_PORT}/v2/",
            f"http://{link.address}:{HUB_PORT}/api/models/acme/ocr",
        ):
            answers(url)
        for turn in range(options.rounds):
            for name in options.only:
                for version, steps in first_and_second(link, folder, CONTENDERS[name]):
                    told = ", ".join(f"{step} {value:.2f}" for step, value in steps.items())
                    print(f"round {turn + 1}: {name}{version}: {told}", file=sys.stderr, flush=True)
                    taken.setdefault(name + version, []).append(steps)
    print(f"cold node behind {options.megabits} Mbit/s: seconds, {options.rounds} rounds in turn")
    print(table(taken))
    document = {"megabits": options.megabits, "machine": machine(), "steps": taken}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


# --- images and checkpoints -------------------------------------------------------------------------------------------


def prepare(folder: Path) -> None:
    """Build all images with full-size dummies, push them into a registry's store in `folder`, fetch the checkpoints."""
    folder.mkdir(parents=True, exist_ok=True)
    fetch = [sys.executable, "-m", "prebake", "fetch", "--models", str(ROOT / "models.dummy.toml"), "--output"]
    subprocess.run([*fetch, str(folder / "hub"), *MODELS], check=True)
    with (folder / "registry.log").open("ab") as log:
        process = subprocess.Popen(registry(folder, "127.0.0.1"), stdout=log, stderr=log)
    try:
        answers(f"http://127.0.0.1:{REGISTRY_PORT}/v2/")
        for target, name, compression in BUILT:
            bake(ROOT, target, f"{name}:{compression}", compression)
        changed = folder / "changed"
        shutil.rmtree(changed, ignore_errors=True)
        shutil.copytree(
            ROOT, changed, ignore=shutil.ignore_patterns(".git", ".venv", "dist", "__pycache__", ".*_cache")
        )
        split(changed)
        bake(changed, "image", "baked:split", "zstd")
        shutil.copyfile(ROOT / "docker-bake.hcl", changed / "docker-bake.hcl")
        shutil.copyfile(ROOT / "models.dummy.toml", changed / "models.dummy.toml")
        with (changed / "service/image_analyzer/service.py").open("a", encoding="utf-8") as module:
            module.write(f'\nVERSION = "{time.time()}"\n')
        bake(changed, "runtime", "plain:v2", "gzip")
        bake(changed, "image", "baked:v2", "uncompressed")
        shutil.rmtree(changed)
    finally:
        ended(process)


def split(context: Path) -> None:
    """Have a context make layers of 256 MB: both large models come to four files."""
    models, variables = context / "models.dummy.toml", context / "docker-bake.hcl"
    text = models.read_text(encoding="utf-8")
    for name in ("caption", "florence"):
        text = text.replace(f"[models.{name}]\n", f'[models.{name}]\nshard_size = "256 MB"\n')
    models.write_text(text, encoding="utf-8")
    text = variables.read_text(encoding="utf-8")
    counted = 'variable "SHARDS" { default = { caption = 4, florence = 4 } }'
    variables.write_text(text.replace('variable "SHARDS" { default = {} }', counted), encoding="utf-8")


def bake(context: Path, target: str, name: str, compression: str) -> None:
    """Build one target and push it."""
    print(f"building {name}", file=sys.stderr, flush=True)
    output = f"type=registry,compression={compression},force-compression=true,oci-mediatypes=true"
    command = ["docker", "buildx", "bake", "--progress=quiet", "--provenance=false", f"--set={target}.output={output}",
               f"--set={target}.tags=127.0.0.1:{REGISTRY_PORT}/{name}", target]  # fmt: skip
    if wheels := os.environ.get("WHEELS"):
        command.append(f"--allow=fs.read={wheels}")
    subprocess.run(command, cwd=context, check=True, env={**os.environ, "MODELS_FILE": "models.dummy.toml"})
    # a push with containerd's image store keeps the image here as well
    subprocess.run(["docker", "image", "rm", f"127.0.0.1:{REGISTRY_PORT}/{name}"], capture_output=True)


def registry(folder: Path, address: str) -> list[str]:
    """The command of a registry that keeps its images in `folder`."""
    settings = {"version": "0.1", "storage": {"filesystem": {"rootdirectory": str(folder / "registry")}},
                "http": {"addr": f"{address}:{REGISTRY_PORT}"}}  # fmt: skip
    (folder / "registry.yml").write_text(json.dumps(settings), encoding="utf-8")  # YAML contains JSON
    return ["docker-registry", "serve", str(folder / "registry.yml")]


def hub(folder: Path) -> list[str]:
    """The command of the stand-in for the hub."""
    return [sys.executable, str(Path(__file__).with_name("hub_files.py")), str(folder / "hub"), str(HUB_PORT)]


def answers(url: str) -> None:
    """Wait until it does."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(600):
        try:
            direct.open(url, timeout=10).close()
            return
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"{url}: does not answer")


# --- one start --------------------------------------------------------------------------------------------------------


def first_and_second(link: Link, folder: Path, contender: Contender) -> Iterator[tuple[str, dict[str, float]]]:
    """The first start on a node, and that of the second version, if there is one."""
    with Node(folder / "node", f"{link.address}:{REGISTRY_PORT}") as node:
        yield "", start(link, node, contender, contender.image)
        if contender.second:
            yield " v2", start(link, node, contender, contender.second)


def start(link: Link, node: Node, contender: Contender, image: str) -> dict[str, float]:
    """Seconds of each step, the total, MB over the link, and the engine's processor seconds during the pull."""
    where = f"{link.address}:{REGISTRY_PORT}"
    before = node.processor_seconds()
    began, moved, linked = perf_counter(), link.moved(), 0.0
    for name in filter(None, (image, contender.weights)):
        with Watch(link) as watch:
            node.pull(f"{where}/{name}")
        linked += watch.busy
    pulled, used = perf_counter(), node.processor_seconds() - before
    with ExitStack() as stack:
        options: dict[str, Any] = {"mounts": [mounted(f"{where}/{contender.weights}")]} if contender.weights else {}
        container = node.engine.containers.create(
            f"{where}/{image}", entrypoint=list(contender.entrypoint), command=[], network_mode="host",
            environment={"HF_ENDPOINT": f"http://{link.address}:{HUB_PORT}", "HF_HUB_OFFLINE":
                         "0" if contender.image.startswith("plain") and not contender.weights else "1"}, **options,
        )  # fmt: skip
        service = ContainerService(container)
        stack.callback(service.stop)
        created = perf_counter()
        container.start()
        started = perf_counter()
        service.url = f"http://127.0.0.1:{PORT}"
        ready, answered = asked(service)
    times = [began, min(began + linked, pulled), pulled, created, started, ready, answered]
    steps = dict(zip(STEPS, (later - earlier for earlier, later in itertools.pairwise(times)), strict=True))
    return {**steps, "total": answered - began, "MB": (link.moved() - moved) / 1e6, "processor": used}


def mounted(image: str) -> dict[str, Any]:
    """A mount of an image, which the Docker SDK has no word for (Engine 28 and newer)."""
    return {
        "Type": "image",
        "Source": image,
        "Target": "/models",
        "ReadOnly": True,
        "ImageOptions": {"Subpath": "models"},
    }


def asked(service: ContainerService) -> tuple[float, float]:
    """When it was ready, and when it had answered the first request."""
    waited = wait(service, ask.ready(), 600)
    if waited.told is None:
        raise SystemExit(f"{unready(service, waited, 600)}; its log ends:\n{service.log()[-2000:]}")
    ready = perf_counter()
    ask.questions(waited.told)[0].ask(waited.told.url, 300)
    return ready, perf_counter()


# --- what is printed --------------------------------------------------------------------------------------------------


def table(taken: dict[str, list[dict[str, float]]]) -> str:
    """Medians of the steps; totals with their spread, and pair by pair against the first two contenders."""
    lines = []
    for name, starts in taken.items():
        of = {step: [sample[step] for sample in starts] for step in starts[0]}
        steps = "  ".join(f"{step} {sorted(of[step])[len(starts) // 2]:.1f}" for step in (*STEPS, "processor", "MB"))
        lines.append(f"{name:22} total {spread(of['total']):22} {steps}")
        lines += [
            f"{'':22} / {other}: {ratios(of['total'], [sample['total'] for sample in taken[other]])}"
            for other in ("download", "one layer")
            if other in taken and other != name and not name.endswith(" v2")
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
