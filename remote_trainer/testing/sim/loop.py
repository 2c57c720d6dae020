"""An event loop whose time jumps from timer to timer: hours of waiting cost nothing, and no run differs from the next.

A simulated process is whatever runs with its ``Being``: frozen, nothing of it runs and its timers wait, as with SIGSTOP; dead, nothing of
it ever runs again, as after SIGKILL: no ``finally``, no last words. Work for threads is done at once, where it is asked for.

Rules for editing: public asyncio surface only. Sockets, signals and subprocesses do not work on it. Every microsecond here is paid
some ten thousand times in a life.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import Context, ContextVar, copy_context
from datetime import UTC, datetime
from typing import Any

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)

#: So many calls without time passing mean that something spins.
_CALLS_MAX = 50_000


class Spinning(AssertionError):
    """Tasks wake each other without end and time does not pass, or all wait and nothing can ever wake them."""


class _Call:
    """A callback that waits for its turn or its time."""

    __slots__ = ("args", "callback", "context", "time")

    def __init__(self, time: float, callback: Callable[..., Any] | None, args: tuple[Any, ...], context: Context) -> None:
        self.time, self.callback, self.args, self.context = time, callback, args, context

    def cancel(self) -> None:
        self.callback = None

    def cancelled(self) -> bool:
        return self.callback is None

    def when(self) -> float:
        return self.time


class Being:
    """A process, as far as the loop knows one."""

    def __init__(self) -> None:
        self.frozen = self.dead = False
        self._parked: list[_Call] = []

    def park(self, call: _Call) -> None:
        """Keep what would have run by now."""
        self._parked.append(call)

    def die(self) -> None:
        """Never run again."""
        self.frozen = self.dead = True

    def thaw(self) -> list[_Call]:
        """Return what waits, in order; nothing is frozen any more."""
        self.frozen = False
        waiting, self._parked = self._parked, []
        return waiting


#: Whose code runs now; None for the world's own.
OWNER: ContextVar[Being | None] = ContextVar("OWNER", default=None)


class VirtualLoop(asyncio.AbstractEventLoop):
    """The loop of one simulated life. What breaks in the background is kept in ``trouble``."""

    def __init__(self) -> None:
        self.now = 0.0
        self.trouble: list[BaseException] = []
        self._ready: deque[_Call] = deque()
        self._timers: list[tuple[float, int, _Call]] = []
        self._order = 0
        self._tasks: list[asyncio.Task[Any]] = []  # asyncio holds them weakly, and nobody waits for those of the dead
        self._beings: list[Being] = []
        self._closed = False
        self.outside = Context()  # what happens in it belongs to no process

    # -- processes

    def be(self, being: Being, coro: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run that as a process's main task."""
        context = copy_context()
        context.run(OWNER.set, being)
        self._beings.append(being)
        return self.create_task(coro, name=name, context=context)

    def thaw(self, being: Being) -> None:
        """Let a frozen process go on; a dead one stays dead."""
        if being.frozen and not being.dead:
            self._ready.extend(being.thaw())

    # -- what tasks, futures and timeouts ask for

    def time(self) -> float:
        """Return the virtual seconds since the start."""
        return self.now

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> Any:  # type: ignore[override]
        call = _Call(self.now, callback, args, copy_context() if context is None else context)
        self._ready.append(call)
        return call

    def call_later(self, delay: float, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> Any:  # type: ignore[override]
        return self.call_at(self.now + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> Any:  # type: ignore[override]
        call = _Call(when, callback, args, copy_context() if context is None else context)
        self._order += 1
        heapq.heappush(self._timers, (when, self._order, call))
        return call

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Coroutine[Any, Any, Any], **more: Any) -> asyncio.Task[Any]:  # type: ignore[override]
        task = asyncio.Task(coro, loop=self, **more)
        self._tasks.append(task)
        return task

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """Do the work here and now."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - goes to whoever waits, as from a thread
            future.set_exception(error)
        return future

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.trouble.append(context.get("exception") or AssertionError(context["message"]))

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return not self._closed

    def is_closed(self) -> bool:
        return self._closed

    # -- running

    def run_until_complete(self, future: Any) -> Any:
        """Run until that is done, and return its result."""
        asyncio._set_running_loop(self)
        try:
            task = asyncio.ensure_future(future, loop=self)
            while not task.done():
                self._turn()
            return task.result()
        finally:
            asyncio._set_running_loop(None)

    def close(self) -> None:
        """End every task that is left, those of frozen and dead processes too: they wake once more, into nothing."""
        self._closed = True
        asyncio._set_running_loop(self)
        for being in self._beings:
            self._ready.extend(being.thaw())
        with suppress(Spinning):
            for _ in range(50):  # one that is cancelled may begin to wait for another one
                left = [task for task in self._tasks if not task.done()]
                if not left:
                    break
                for task in left:
                    task.cancel()
                self._run()
        asyncio._set_running_loop(None)
        self._tasks.clear()
        self._ready.clear()
        self._timers.clear()

    def _turn(self) -> None:
        if not self._ready:
            while self._timers:
                when, _, call = heapq.heappop(self._timers)
                if call.callback is not None:
                    self.now = max(self.now, when)
                    self._ready.append(call)
                    break
            else:
                raise Spinning("every task waits for another one: nothing can ever happen again")
        self._run()

    def _run(self) -> None:
        """Run what is ready, and what that makes ready, until time has to pass."""
        ready = self._ready
        for _ in range(_CALLS_MAX):
            if not ready:
                return
            call = ready.popleft()
            if call.callback is None:
                continue
            owner = call.context.get(OWNER)
            if owner is not None and owner.frozen and not self._closed:
                owner.park(call)
            else:
                call.context.run(call.callback, *call.args)
        raise Spinning(f"{_CALLS_MAX} calls at {self.now:.3f} s: a hot loop")
