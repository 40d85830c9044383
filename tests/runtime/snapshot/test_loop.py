"""An event loop that leaves `run_forever` for a moment, and keeps what waits in it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator

import pytest

from prebake.snapshot.loop import Loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def descriptors() -> list[str]:
    """What this process has open, without the listing itself."""
    found = []
    for number in os.listdir("/proc/self/fd"):  # noqa: PTH208
        try:
            found.append(os.readlink(f"/proc/self/fd/{number}"))  # noqa: PTH115
        except OSError:
            continue
    return sorted(found)


def test_at_rest_the_loop_does_not_run_and_has_no_descriptor() -> None:
    before = descriptors()
    loop = Loop()
    try:
        seen = loop.run_until_complete(loop.at_rest(lambda: (descriptors(), loop.is_running())))
        assert seen == (before, False)
        assert len(descriptors()) == len(before) + 3  # epoll and two sockets
    finally:
        loop.close()
    assert descriptors() == before


def test_tasks_timers_threads_and_sockets_go_on(loop: Loop) -> None:
    async def work() -> list[object]:
        assert await asyncio.to_thread(lambda: 1) == 1
        waiting = asyncio.create_task(asyncio.sleep(0.01, "timer"))
        event = asyncio.Event()
        task = asyncio.create_task(event.wait())
        await asyncio.sleep(0)
        value = await loop.at_rest(lambda: 7)
        event.set()
        return [value, await waiting, await task, await asyncio.to_thread(lambda: "thread"), await _echoed()]

    assert loop.run_until_complete(work()) == [7, "timer", True, "thread", b"hello"]


async def _echoed() -> bytes:
    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.close()

    async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        reader, writer = await asyncio.open_connection(host, port)
        answer = await reader.read()
        writer.close()
        return answer


def test_timers_follow_the_clock_of_another_machine(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> list[float]:
        timers = [loop.call_later(seconds, print) for seconds in (100, 300, 200)]
        left = [timer.when() - loop.time() for timer in timers]

        def later() -> None:
            real = loop.time
            monkeypatch.setattr(loop, "time", lambda: real() - 50_000)

        await loop.at_rest(later)
        return [round(timer.when() - loop.time() - before) for timer, before in zip(timers, left, strict=True)]

    assert loop.run_until_complete(work()) == [0, 0, 0]


def test_signals_wake_the_loop_as_before(loop: Loop) -> None:
    async def work() -> str:
        got: asyncio.Future[str] = loop.create_future()
        loop.add_signal_handler(signal.SIGUSR1, lambda: got.set_result("signal"))
        await loop.at_rest(lambda: None)
        os.kill(os.getpid(), signal.SIGUSR1)
        return await got

    assert loop.run_until_complete(work()) == "signal"


def test_an_error_reaches_who_asked_and_the_loop_goes_on(loop: Loop) -> None:
    def fail() -> None:
        raise ValueError("not now")

    async def work() -> str:
        with pytest.raises(ValueError, match=r"^not now$"):
            await loop.at_rest(fail)
        return await asyncio.sleep(0.001, "goes on")

    assert loop.run_until_complete(work()) == "goes on"


def test_threads_of_anyio_have_ended(loop: Loop) -> None:
    anyio = pytest.importorskip("anyio")

    async def work() -> tuple[list[str], object]:
        def run(function: Callable[[], object]) -> Awaitable[object]:
            return anyio.to_thread.run_sync(function)  # type: ignore[no-any-return]

        await run(lambda: None)
        return await loop.at_rest(_workers_left), await run(lambda: "thread")

    assert loop.run_until_complete(work()) == ([], "thread")


def _workers_left() -> list[str]:
    """Threads of anyio, once they had time to end."""
    for _ in range(1000):
        found = [thread.name for thread in threading.enumerate() if "AnyIO" in thread.name]
        if not found:
            break
        time.sleep(0.01)
    return found


def test_a_socket_of_the_application_stays_open(loop: Loop) -> None:
    """It is not the loop's: the dump names it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)

        async def work() -> int:
            loop.add_reader(ours, lambda: None)
            return await loop.at_rest(ours.fileno)

        assert loop.run_until_complete(work()) == ours.fileno()
