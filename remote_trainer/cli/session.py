"""Opens the installation for one command and closes it after.

Rules for editing: the only place of the command line that makes an ``App``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

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

    return asyncio.run(main())
