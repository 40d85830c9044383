"""uvicorn, in a process that is to be dumped: after the application's start-up, and before the port opens.

The application is imported and its lifespan has started, with the models that it loads there; the socket does not exist
yet. The event loop is one that can be at rest (`prebake.snapshot.loop`). uvicorn 0.20 to 0.54 were read.
"""

from __future__ import annotations

import asyncio
import sys
from types import ModuleType
from typing import Any

from prebake.errors import SnapshotError
from prebake.snapshot import point
from prebake.telemetry import timeline


def install(module: ModuleType) -> None:
    """Change `Server` and `Config` of `uvicorn.server`, if this process is to be dumped."""
    if not point.wanted() or hasattr(module.Server.startup, "_prebake"):
        return
    from prebake.snapshot.loop import Loop

    _use_loop(module.Config, Loop)
    startup = module.Server.startup

    async def dumping(server: Any, *args: Any, **kwargs: Any) -> None:
        given = bool(args or kwargs.get("sockets"))
        if point.wanted() and (reason := _unfit(server.config, asyncio.get_running_loop(), Loop, given=given)):
            point.refuse(reason)
        restored = _dump_after_lifespan(server)
        await startup(server, *args, **kwargs)
        if restored:
            timeline.mark(timeline.READY)

    def bind_socket(config: Any) -> None:
        point.refuse(_workers(config))

    dumping._prebake = startup  # type: ignore[attr-defined]
    module.Server.startup = dumping
    module.Config.bind_socket = bind_socket


def _workers(config: Any) -> str:
    given = "--reload" if config.reload else f"--workers {config.workers}"
    return (f"uvicorn {given} starts other processes, and a snapshot holds one: leave it out, and start more "
            "containers, which share the snapshot's memory")  # fmt: skip


def _use_loop(config: Any, loop: type[asyncio.SelectorEventLoop]) -> None:
    """Have uvicorn use this loop, unless another was asked for than its own choice or asyncio's."""
    chosen = "get_loop_factory" if hasattr(config, "get_loop_factory") else "setup_event_loop"
    original = getattr(config, chosen)

    def choose(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.loop not in ("auto", "asyncio"):
            return original(self, *args, **kwargs)
        if chosen == "get_loop_factory":
            return loop
        policy = type("Policy", (asyncio.DefaultEventLoopPolicy,), {"_loop_factory": loop})
        return asyncio.set_event_loop_policy(policy())

    setattr(config, chosen, choose)


def _dump_after_lifespan(server: Any) -> list[bool]:
    """Have the server's lifespan dump the process once it has started; the list has an item in the restored process."""
    started, restored = server.lifespan.startup, list[bool]()

    async def start_and_dump() -> None:
        await started()
        if server.lifespan.should_exit or not point.wanted():
            return
        arguments = sys.argv[1:]
        point.after_restore(lambda: _same(arguments))
        loop: Any = asyncio.get_running_loop()
        try:
            restored.append(await loop.at_rest(point.here))
        except SnapshotError as error:
            point.refuse(str(error))

    server.lifespan.startup = start_and_dump
    return restored


def _unfit(config: Any, running: object, loop: type[asyncio.SelectorEventLoop], *, given: bool) -> str | None:
    """Why a server with this configuration can't be dumped, or None."""
    if given or config.fd is not None:
        return "uvicorn was given a socket that is open already: let it open its own, by --host and --port, or --uds"
    if config.is_ssl:
        return "the key of uvicorn's certificate would be in the snapshot: end TLS before the container"
    if not isinstance(running, loop):
        name = f"{type(running).__module__}.{type(running).__qualname__}"
        return (f"the event loop, {name}, can't be closed and opened again: start uvicorn with --loop asyncio, or by "
                "uvicorn.run")  # fmt: skip
    return None


def _same(arguments: list[str]) -> None:
    if sys.argv[1:] != arguments:
        raise SnapshotError(f"the arguments are {' '.join(sys.argv[1:])!r}, and the snapshot was taken with "
                            f"{' '.join(arguments)!r}")  # fmt: skip
