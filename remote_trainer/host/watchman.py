"""Puts a watchman on a rented machine: it ends the machine by itself when everything of ours is gone (see watchman.sh).

Rules for editing: one exec. The orders travel on stdin: the outbox is a secret.
"""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass, field

from remote_trainer.host import protocol, scripts
from remote_trainer.ports import Transport


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What a watchman is to do; seconds throughout."""

    farewell: str  # sh text that ends the machine
    silence_s: float  # after which nobody is taken to need a machine on which no step runs
    hold_s: float  # the same where that would lose outputs
    limit_s: float | None = None  # from now: when the machine is ended, whoever speaks
    outbox: str = field(default="", repr=False)  # an address to which the outputs may be put as one tar file

    @property
    def text(self) -> bytes:
        """Return the form the watchman reads; the last line proves that all has arrived."""
        given = {"FAREWELL": self.farewell, "OUTBOX": self.outbox}
        lines = [f"{name}={base64.b64encode(value.encode()).decode()}" for name, value in given.items() if value]
        return "\n".join([*lines, ".", ""]).encode()


async def keep(transport: Transport, root: str, key: str, orders: Orders) -> None:
    """Have a watchman over the attempt ``key`` with these orders, in the place of the one there is."""
    limit_s = 0 if orders.limit_s is None else max(1, math.ceil(orders.limit_s))
    times = (str(math.ceil(orders.silence_s)), str(math.ceil(orders.hold_s)), str(limit_s))
    done = await scripts.run(transport, root, "watchman", "keep", key, *times, stdin=orders.text)
    if done.code != 0:
        raise protocol.failure(done, transport.address, f"setting a watchman over {key}")
