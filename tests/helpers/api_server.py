"""A real Kubernetes API server on this machine, without any node: what it stores is validated and admitted, not run."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.keys import key_pair
from prebake_build.measure.processes import free_port

_TOKEN = "prebake-test"
_SECONDS = 180  # until it is ready: a few seconds alone on the machine


@dataclass(frozen=True)
class Cluster:
    """`kubectl` of an administrator of the server."""

    folder: Path

    def kubectl(self, *arguments: str, given: object = None) -> subprocess.CompletedProcess[str]:
        """Runs a command, with the object `given` on its standard input."""
        environment = {**os.environ, "KUBECONFIG": str(self.folder / "config"), "HOME": str(self.folder)}
        return subprocess.run(
            ["kubectl", "--request-timeout=60s", *arguments],
            input=json.dumps(given), env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    def apply(self, layer: Path, namespace: str, *, server_side: bool = True) -> subprocess.CompletedProcess[str]:
        """Applies a kustomization. An unknown field and a warning are errors."""
        strict = ("--validate=strict", "--warnings-as-errors", f"--server-side={str(server_side).lower()}")
        return self.kubectl("apply", *strict, "-n", namespace, "-k", str(layer))

    def get(self, namespace: str, *names: str) -> list[dict[str, Any]]:
        """The objects as the server stores them."""
        done = self.kubectl("get", "-n", namespace, "-o", "json", *names)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        return list(found["items"]) if found["kind"] == "List" else [found]

    def namespace(self, name: str) -> str:
        """Makes a namespace that takes only pods that the Pod Security Standard `restricted` allows."""
        modes = ("enforce", "warn")
        labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in modes}
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": name}}
        space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        for given in (space, account):  # no controller runs that would make the account
            done = self.kubectl("create", "-f", "-", given=given)
            assert done.returncode == 0, done.stderr
        return name


@contextmanager
def api_server(programs: Path, folder: Path) -> Iterator[Cluster]:
    """Runs `etcd` and `kube-apiserver` of the folder `programs` on loopback, with their state in `folder`."""
    store, port = f"http://127.0.0.1:{free_port()}", free_port()
    private, public = key_pair(folder)
    (folder / "tokens").write_text(f"{_TOKEN},admin,1,system:masters\n")
    (folder / "config").write_text(yaml.safe_dump(_config(folder, port)))
    with ExitStack() as running:
        _start(running, folder, [
            programs / "etcd", f"--data-dir={folder / 'etcd'}", "--unsafe-no-fsync", "--listen-peer-urls=http://127.0.0.1:0",
            f"--listen-client-urls={store}", f"--advertise-client-urls={store}",
        ])  # fmt: skip
        server = _start(running, folder, [
            programs / "kube-apiserver", f"--etcd-servers={store}", "--bind-address=127.0.0.1",
            f"--secure-port={port}", f"--cert-dir={folder / 'certificates'}", f"--token-auth-file={folder / 'tokens'}",
            "--authorization-mode=RBAC", f"--service-account-issuer=https://127.0.0.1:{port}",
            f"--service-account-signing-key-file={private}", f"--service-account-key-file={public}",
            "--service-cluster-ip-range=10.0.0.0/24", "--endpoint-reconciler-type=none", "--allow-privileged",
        ])  # fmt: skip
        cluster = Cluster(folder)
        _wait(cluster, server)
        yield cluster


def _config(folder: Path, port: int) -> dict[str, Any]:
    authority = str(folder / "certificates" / "apiserver.crt")
    return {
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": f"https://127.0.0.1:{port}",
                                                  "certificate-authority": authority}}],
        "users": [{"name": "test", "user": {"token": _TOKEN}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    }  # fmt: skip


def _start(running: ExitStack, folder: Path, command: list[str | Path]) -> subprocess.Popen[bytes]:
    log = running.enter_context((folder / f"{Path(command[0]).name}.log").open("wb"))
    process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    running.callback(_stop, process)
    return process


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait(cluster: Cluster, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + _SECONDS
    while server.poll() is None and time.monotonic() < end:
        if cluster.kubectl("get", "--raw", "/readyz").stdout == "ok":
            return
        time.sleep(0.5)
    log = (cluster.folder / "kube-apiserver.log").read_text()[-3000:]
    pytest.fail(f"kube-apiserver was not ready within {_SECONDS} s (exit status {server.poll()}):\n{log}")
