"""Ways in to a machine that do not open, or not yet: what stands between an instance's address and its SSH server.

Rules for editing: only an instance with such a fault has a door; what it does to clients is done by the kernel's own means.
"""

from __future__ import annotations

import contextlib
import socket
from contextlib import ExitStack

from remote_trainer.testing.netfault import Link
from remote_trainer.testing.vast.machines import Address

REFUSED, TIMEOUTS, LATE_BANNER = "boot-refused", "boot-timeouts", "boot-late-banner"
DOORS = (REFUSED, TIMEOUTS, LATE_BANNER)


class Door:
    """An address in front of another one: shut in one of three ways until `open()`."""

    def __init__(self, how: str, target: Address) -> None:
        self._target = target
        self._stack = ExitStack()
        self._link: Link | None = None
        self.port = 0
        if how == LATE_BANNER:
            self._link = self._stack.enter_context(Link(*target))
            self._link.cut()
            self.port = self._link.port
        else:
            self._shut = self._stack.enter_context(contextlib.closing(socket.socket()))
            self._shut.bind(("127.0.0.1", 0))
            self.port = self._shut.getsockname()[1]
            if how == TIMEOUTS:
                self._fill()

    def _fill(self) -> None:
        """Leave no room for another connection: the kernel then ignores whoever knocks."""
        self._shut.listen(0)
        knocking = self._stack.enter_context(contextlib.closing(socket.socket()))
        knocking.connect(("127.0.0.1", self.port))

    def open(self) -> Address:
        """Let everybody through from now on; returns where."""
        if self._link is not None:
            self._link.heal()
            return "127.0.0.1", self.port
        self._stack.close()
        return self._target

    def close(self) -> None:
        """Be gone."""
        self._stack.close()
