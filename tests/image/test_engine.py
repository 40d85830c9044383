"""`prebake_build.images.engine` against a stand-in for the Docker SDK's client; test_image.py has the real one."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import docker
import pytest

from prebake.errors import PrebakeError
from prebake_build.images.engine import Layer, match_layers, open_engine
from prebake_build.measure.containers import ContainerLauncher

HISTORY = [
    {"Size": 30, "CreatedBy": "COPY / / # buildkit"},
    {"Size": 0, "CreatedBy": 'CMD ["serve"]'},
    {"Size": 0, "CreatedBy": "/bin/sh -c #(nop)  ENV PATH=/bin"},
    {"Size": 20, "CreatedBy": "RUN |1 A=b /bin/sh -c pip install # buildkit"},
    {"Size": 10, "CreatedBy": ""},
]
"""As the engine gives it, the newest first."""


class FakeContainer:
    """What `ContainerService` uses of the SDK's container."""

    def __init__(self, ports: dict[str, Any] | None, *, refuses: bool = False) -> None:
        self.attrs: dict[str, Any] = {"NetworkSettings": {"Ports": ports}, "State": {"ExitCode": 1}}
        self.status = "running"
        self.removed = 0
        self._refuses = refuses

    def start(self) -> None:
        if self._refuses:
            raise docker.errors.APIError("no", explanation="no such runtime")

    def reload(self) -> None:
        pass

    def logs(self) -> bytes:
        return b"ready\n"

    def remove(self, **options: Any) -> None:
        assert options == {"force": True, "v": True}
        self.removed += 1


class FakeEngine:
    """Makes one container, and keeps what it was asked for."""

    def __init__(self, container: FakeContainer | Exception, exposed: tuple[str, ...] = ()) -> None:
        self._container = container
        self.asked: dict[str, Any] = {}
        self.containers = SimpleNamespace(create=self._create)
        image = SimpleNamespace(attrs={"Config": {"ExposedPorts": dict.fromkeys(exposed)}})
        self.images = SimpleNamespace(get=lambda name: image)

    def _create(self, image: str, command: list[str] | None, **options: Any) -> FakeContainer:
        self.asked = {"image": image, "command": command, **options}
        if isinstance(self._container, Exception):
            raise self._container
        return self._container


def published() -> FakeContainer:
    return FakeContainer({"8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": "32768"}]})


def test_layers_are_matched_with_the_instructions_that_made_them() -> None:
    assert match_layers("an-image", ["sha256:a", "sha256:b", "sha256:c"], HISTORY) == (
        Layer(digest="sha256:a", size=10, created_by=""),
        Layer(digest="sha256:b", size=20, created_by="RUN |1 A=b /bin/sh -c pip install # buildkit"),
        Layer(digest="sha256:c", size=30, created_by="COPY / / # buildkit"),
    )


def test_an_instruction_that_changed_no_file_has_a_layer_where_the_engine_kept_it() -> None:
    history = [{"Size": 0, "CreatedBy": "WORKDIR /dev/shm"}, *HISTORY]
    assert match_layers("an-image", ["a", "b", "c", "d"], history)[-1].created_by == "WORKDIR /dev/shm"
    assert len(match_layers("an-image", ["a", "b", "c"], history)) == 3


def test_a_history_that_does_not_come_out_even_is_refused() -> None:
    with pytest.raises(PrebakeError) as caught:
        match_layers("an-image", ["a", "b"], HISTORY)
    assert str(caught.value) == "an-image: has 2 layers, but its history lists 3"


@pytest.fixture
def _leaking_sdk() -> Iterator[None]:
    """The SDK does not close the socket of a connection that failed."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.mark.usefixtures("_leaking_sdk")
def test_no_engine_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    with pytest.raises(PrebakeError) as caught:
        open_engine()
    message = str(caught.value)
    assert message.startswith("no Docker engine answers at unix:///nowhere/docker.sock (")
    assert message.endswith("): start one, or name it with DOCKER_HOST")


@pytest.mark.usefixtures("_leaking_sdk")
def test_the_address_of_the_current_context_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    context = SimpleNamespace(Host="unix:///of/the/context.sock")
    monkeypatch.setattr("docker.context.ContextAPI.get_current_context", lambda: context)
    with pytest.raises(PrebakeError, match=r"^no Docker engine answers at unix:///of/the/context\.sock"):
        open_engine()


def test_a_container_is_started_hardened_marked_and_on_the_loopback_interface_only() -> None:
    engine = FakeEngine(published())
    service = ContainerLauncher(engine, "an-image", "baked").launch()
    assert service.addresses() == ["http://127.0.0.1:32768"]
    assert engine.asked == {
        "image": "an-image",
        "command": None,
        "labels": {"prebake.measure": "1"},
        "ports": {"8000/tcp": ("127.0.0.1", None)},
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
    }


def test_options_of_the_caller_take_precedence() -> None:
    engine = FakeEngine(published())
    ContainerLauncher(engine, "an-image", "baked", command=("check",), read_only=False, mem_limit="2g").launch()
    assert (engine.asked["command"], engine.asked["read_only"], engine.asked["mem_limit"]) == (["check"], False, "2g")


def test_stop_removes_once_and_keeps_the_log() -> None:
    container = published()
    with ContainerLauncher(FakeEngine(container), "an-image", "baked").launch() as service:
        assert service.alive()
        service.stop()
    assert (container.removed, service.alive(), service.log()) == (1, False, "ready\n")


def test_a_container_that_ended_at_once_has_no_address_and_tells_its_exit_code() -> None:
    container = FakeContainer({})
    container.status = "exited"
    service = ContainerLauncher(FakeEngine(container), "an-image", "baked").launch()
    assert (service.addresses(), service.exit_code(), service.log()) == ([], 1, "ready\n")
    service.stop()
    assert container.removed == 1


@pytest.mark.parametrize(
    ("exposed", "port", "expected"),
    [(("9000/tcp",), None, "9000/tcp"), (("9000/tcp", "9001/tcp"), None, "8000/tcp"), (("53/udp",), None, "8000/tcp"),
     (("9000/tcp",), 7000, "7000/tcp")],
)  # fmt: skip
def test_the_port_is_the_only_one_that_the_image_exposes(
    exposed: tuple[str, ...], port: int | None, expected: str
) -> None:
    engine = FakeEngine(published(), exposed)
    ContainerLauncher(engine, "an-image", "baked", port=port).launch()
    assert list(engine.asked["ports"]) == [expected]


def test_a_plain_image_is_started_sealed_first_and_then_without(caplog: pytest.LogCaptureFixture) -> None:
    engine = FakeEngine(published())
    launcher = ContainerLauncher(engine, "an-image", "baseline", sealed=None)
    launcher.launch()
    assert engine.asked["read_only"] is True
    assert launcher.unseal()
    launcher.launch()
    assert "read_only" not in engine.asked
    assert not launcher.unseal()
    assert caplog.messages == [
        "baseline: does not become ready in a sealed container (read-only root, no capabilities, no new "
        "privileges): started without these from now on"
    ]


@pytest.mark.parametrize("sealed", [True, False])
def test_what_the_user_decided_stays(sealed: bool) -> None:
    assert not ContainerLauncher(FakeEngine(published()), "an-image", "baked", sealed=sealed).unseal()


def test_a_container_that_cannot_be_started_is_removed() -> None:
    container = FakeContainer({}, refuses=True)
    with pytest.raises(PrebakeError) as caught:
        ContainerLauncher(FakeEngine(container), "an-image", "baked").launch()
    assert str(caught.value) == "an-image: the container does not start: no such runtime"
    assert container.removed == 1


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (docker.errors.ImageNotFound("no"), "an-image: there is no such image here: build it, or pull it"),
        (docker.errors.APIError("no", explanation="bad limit"),
         "an-image: the engine cannot create a container: bad limit"),
        (TypeError("run() got an unexpected keyword argument 'memlimit'"),
         "an-image: the Docker SDK knows no such option of a container: run() got an unexpected keyword argument "
         "'memlimit'"),
    ],
)  # fmt: skip
def test_a_container_that_cannot_be_made_is_said(error: Exception, message: str) -> None:
    with pytest.raises(PrebakeError) as caught:
        ContainerLauncher(FakeEngine(error), "an-image", "baked").launch()
    assert str(caught.value) == message
