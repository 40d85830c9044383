"""`prebake scan` of services that load with transformers, from a hub or from a folder."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from helpers.baking import prebake, save, tiny
from helpers.hub_server import COMMIT, Answer, HubServer, Request
from helpers.scans import ours
from prebake_build.declared.spec import read_spec
from prebake_build.measure.processes import free_port

pytestmark = pytest.mark.usefixtures("scanned")

SOURCE = f"hf:acme/tiny@{COMMIT}"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = save(tiny("BertForMaskedLM"), tmp_path_factory.mktemp("hub"), "safetensors")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def hub(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer(files, branches=("main", "v1")) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def service(*options: object) -> list[object]:
    return ["--", sys.executable, "-m", "helpers.scanned_service", free_port(), *options]


def test_a_service_is_started_seen_and_ended(hub: HubServer, scanned: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = prebake(capfd, "scan", *service())
    assert (code, ours(err)) == (0, "Wrote models.toml with tiny. Next: prebake lock, then prebake init.\n")
    assert (scanned / "models.toml").read_text() == (
        "# The models of this service, as `prebake scan` saw it load them.\n\n"
        f'[models.tiny]\nsource = "{SOURCE}"\nclass = "transformers:BertForMaskedLM"\n'
    )
    assert [model.name for model in read_spec(scanned / "models.toml").models] == ["tiny"]
    header, row, *_ = out.splitlines()
    assert header.split() == ["model", "source", "class", "loads", "seconds", "share"]
    assert row.split()[:4] == ["tiny", SOURCE, "transformers:BertForMaskedLM", "1"]
    assert "The service was ready after " in out and "(GET /health answered 200)" in out


def test_a_lazy_service_loads_with_the_request(hub: HubServer, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = prebake(capfd, "scan", "--json", "--request", 'POST /sum {"ids": [1, 2]}', *service("--lazy"))
    assert (code, ours(err)) == (0, "Wrote models.toml with tiny. Next: prebake lock, then prebake init.\n")
    document = json.loads(out)
    assert (document["ready"], document["added"], document["problems"]) == ("GET /health answered 200", ["tiny"], [])
    assert document["answered"] > document["seconds"]
    assert [model["source"] for model in document["models"]] == [SOURCE]


def test_a_lazy_service_without_a_request_loads_nothing(scanned: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = prebake(capfd, "scan", *service("--lazy"))
    assert (code, out) == (1, "")
    assert ours(err) == (
        "prebake: no load of a model was seen: send a request that makes the service load one (--request), or run it "
        "longer (--seconds)\n"
    )
    assert not (scanned / "models.toml").exists()


@pytest.mark.parametrize("command", [["true"], [sys.executable, "-I", "-c", ""]])
def test_a_service_that_does_not_find_prebake_is_told(command: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = prebake(capfd, "scan", "--", *command)
    assert (code, out) == (1, "")
    assert ours(err) == (
        "prebake: no Python process of the service found Prebake: install it in the environment in which the command "
        "runs; processes that are started with -I, -S or -E, containers and other software are not seen\n"
    )


def test_two_revisions_of_one_id_are_two_tables(
    hub: HubServer, scanned: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = "fedcba9876543210fedcba9876543210fedcba98"

    with HubServer(hub.files, commit=other) as second:
        script = scanned / "two.py"
        script.write_text(
            "import os, subprocess, sys\n"
            f"for url, place in (({hub.url!r}, 'one'), ({second.url!r}, 'two')):\n"
            "    subprocess.run([sys.executable, '-m', 'helpers.scanned_service', '0', '--job'], check=True,\n"
            "                   env={**os.environ, 'HF_ENDPOINT': url, 'HF_HOME': os.environ['HF_HOME'] + place})\n"
        )
        code, _, err = prebake(capfd, "scan", "--until-exit", "--", sys.executable, script)
    assert (code, ours(err)) == (
        0,
        "Wrote models.toml with tiny, tiny-2. Next: prebake lock, then prebake init.\n"
        "prebake: hf:acme/tiny: is declared at another revision too (tiny): bakes both\n",
    )
    assert [model.source for model in read_spec(scanned / "models.toml").models] == [
        f"hf:acme/tiny@main@{COMMIT}", f"hf:acme/tiny@main@{other}"
    ]  # fmt: skip


def test_the_name_that_a_service_asks_for_stands_beside_the_commit(
    hub: HubServer, scanned: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, _, err = prebake(capfd, "scan", "--until-exit", *service("--job", "--revision", "v1"))
    assert (code, ours(err)) == (0, "Wrote models.toml with tiny. Next: prebake lock, then prebake init.\n")
    assert [model.source for model in read_spec(scanned / "models.toml").models] == [f"hf:acme/tiny@v1@{COMMIT}"]


def test_a_model_without_an_owner_is_found_where_the_hub_redirects(
    hub: HubServer, scanned: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def answer(request: Request) -> Answer:
        """As huggingface.co answers for `gpt2`: moved to openai-community/gpt2."""
        there = re.sub(r"^(/api/models)?/tiny(?=/|$)", r"\1/acme/tiny", request.path)
        return served(request) if there == request.path else Answer(status=307, headers={"Location": there})

    served, hub.answer = hub.answer, answer
    code, _, err = prebake(capfd, "scan", "--until-exit", *service("--job", "--model", "tiny"))
    assert (code, ours(err)) == (0, "Wrote models.toml with tiny. Next: prebake lock, then prebake init.\n")
    assert [model.source for model in read_spec(scanned / "models.toml").models] == [f"hf:tiny@{COMMIT}"]
    assert prebake(capfd, "lock")[0] == 0
    assert f'revision = "commit:{COMMIT}"' in (scanned / "models.lock").read_text()


@pytest.mark.parametrize(
    ("last", "why"),
    [
        ("gone", "cannot reach the hub at {url}: [Errno 111] Connection refused: check the network and "
                 "the proxy settings, or name a mirror with HF_ENDPOINT"),
        ("refuses", "{url} answers 503: Server error '503 Service Unavailable' for url '{url}/api/models/acme/tiny'"),
    ],
)  # fmt: skip
def test_a_hub_that_answers_the_load_and_not_the_scan_leaves_it_unpinned(
    hub: HubServer, scanned: Path, last: str, why: str, capfd: pytest.CaptureFixture[str]
) -> None:
    def answer(request: Request) -> Answer:
        if request.path != "/over":
            return served(request)
        if last == "gone":
            Thread(target=stop).start()
        hub.status = 503
        return Answer()

    def stop() -> None:
        hub._server.shutdown()
        hub._server.server_close()

    served, hub.answer = hub.answer, answer
    # with a configuration of its own, transformers keeps no config.json, by which the commit would be known
    (scanned / "own.py").write_text(
        "import json, os, urllib.request\nfrom transformers import BertConfig, BertForMaskedLM\n"
        f"config = BertConfig.from_dict(json.loads({hub.files['config.json'].decode()!r}))\n"
        "BertForMaskedLM.from_pretrained('acme/tiny', config=config)\n"
        "urllib.request.urlopen(os.environ['HF_ENDPOINT'] + '/over').close()\n"
    )
    code, _, err = prebake(capfd, "scan", "--until-exit", "--", sys.executable, "own.py")
    assert (code, ours(err)) == (
        0,
        "Wrote models.toml with tiny. Next: prebake lock, then prebake init.\n"
        f"prebake: hf:acme/tiny: is not pinned: hf:acme/tiny: {why.format(url=hub.url)}\n",
    )
    assert (scanned / "models.toml").read_text().partition("\n\n")[2] == (
        "# Not pinned: the hub did not tell the commit. `prebake lock` will.\n"
        '[models.tiny]\nsource = "hf:acme/tiny"\nclass = "transformers:BertForMaskedLM"\n'
    )


def test_the_workers_of_a_server_load_one_model(
    hub: HubServer, scanned: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = [sys.executable, "-m", "uvicorn", "helpers.scanned_app:app", "--workers", 2, "--port", free_port()]
    code, out, _ = prebake(capfd, "scan", "--json", "--", *command)
    (model,) = json.loads(out)["models"]
    assert (code, model["name"], model["loads"]) == (0, "tiny", 2)
    assert [model.name for model in read_spec(scanned / "models.toml").models] == ["tiny"]


def test_a_model_that_exists_only_here_is_a_path(
    files: dict[str, bytes], scanned: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (scanned / "weights" / "tiny").mkdir(parents=True)
    for name, content in files.items():
        (scanned / "weights" / "tiny" / name).write_bytes(content)
    (scanned / "conf").mkdir()
    code, _, _ = prebake(capfd, "scan", "--models", "conf/models.toml", *service("--job", "--model", "weights/tiny"))
    assert code == 0
    (model,) = read_spec(scanned / "conf" / "models.toml").models
    assert (model.name, model.source) == ("tiny", "path:../weights/tiny")


def test_a_service_that_fails_after_its_loads_passes_its_code_on(
    hub: HubServer, scanned: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, _, err = prebake(capfd, "scan", *service("--fail", 7))
    assert code == 7
    assert ours(err) == (
        "Wrote models.toml with tiny. Next: prebake lock, then prebake init.\n"
        "prebake: the service ended with exit code 7\n"
    )
    assert "[models.tiny]" in (scanned / "models.toml").read_text()
