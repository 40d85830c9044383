"""An event loop of asyncio that can be dumped, with the tasks that wait in it.

The loop's tasks, timers and callbacks are memory; its epoll and the pair of sockets with which threads wake it are not.
`at_rest` leaves `run_forever`, closes both, calls a function, opens new ones and goes on. So no loop is running at the
dump, and what Python keeps of a running one (process id, thread, task) is told anew.

Private names of `asyncio` (`_selector`, `_close_self_pipe`, `_make_self_pipe`, `_signal_handlers`, `_scheduled`) are
the same in Python 3.10 to 3.14.
"""

from __future__ import annotations

import asyncio
import selectors
import signal
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Loop(asyncio.SelectorEventLoop):
    """asyncio's own loop, which can be at rest."""

    _resting: tuple[Callable[[], Any], asyncio.Future[Any]] | None = None
    _selector: selectors.BaseSelector

    async def at_rest(self, function: Callable[[], T]) -> T:
        """Call `function` while the loop does not run and has no descriptor; what it returns or raises."""
        await self._end_threads()
        done: asyncio.Future[T] = self.create_future()
        self._resting = function, done
        self.stop()
        return await done

    def run_forever(self) -> None:
        """Run until `stop` is called by others than `at_rest`."""
        super().run_forever()
        while self._resting is not None:
            (function, done), self._resting = self._resting, None
            self._rest(function, done)
            super().run_forever()

    def _rest(self, function: Callable[[], T], done: asyncio.Future[T]) -> None:
        private: Any = self
        stopped = self.time()
        private._close_self_pipe()
        self._selector.close()
        try:
            done.set_result(function())
        except Exception as error:
            done.set_exception(error)
        finally:
            self._selector = selectors.DefaultSelector()
            private._make_self_pipe()
            if private._signal_handlers:
                signal.set_wakeup_fd(private._csock.fileno())
            for timer in private._scheduled:  # another machine's clock; all move alike, so their order stays
                timer._when += self.time() - stopped

    async def _end_threads(self) -> None:
        """End the idle threads of the default executor, and of anyio's; later calls start new ones."""
        private: Any = self
        if private._default_executor is not None:
            await self.shutdown_default_executor()
            private._default_executor, private._executor_shutdown_called = None, False
        try:
            from anyio._backends._asyncio import _threadpool_idle_workers
        except ImportError:
            return
        for worker in list(_threadpool_idle_workers.get(())):
            worker.stop()
