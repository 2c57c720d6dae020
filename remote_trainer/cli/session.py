"""Opens the installation for one command and closes it after.

Rules for editing: the only place of the command line that makes an ``App``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from remote_trainer.cli.guard import Interrupted

if TYPE_CHECKING:
    from remote_trainer.service.app import App

T = TypeVar("T")


def run(work: Callable[[App], Awaitable[T]]) -> T:
    """Do something with the opened installation."""

    async def main() -> T:
        from remote_trainer.config import load
        from remote_trainer.service.app import App

        async with App(load()) as app:
            return await work(app)

    return wait_for(main())


def wait_for(work: Coroutine[Any, Any, T]) -> T:
    """Do something asynchronous that needs no opened installation. Raises Interrupted at Ctrl-C."""
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:  # the parser would end the program without a word
        raise Interrupted from None
