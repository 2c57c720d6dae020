"""What instances are made of: something that boots, lets keys in, breaks, and is gone when it is removed.

Rules for editing: every method blocks until it has taken effect, is called from threads, one at a time for an instance, and knows nothing
of prices and states.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from remote_trainer.errors import Permanent

Address = tuple[str, int]


class Harm(Enum):
    """What can befall a machine that runs."""

    DROP = "open connections break"
    CUT = "nobody gets in, open connections break; its programs go on"
    HEAL = "the end of CUT"
    FILL = "nothing more can be written"
    BREAK_GPU = "the GPU cannot be used"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to boot."""

    instance: int
    keys: Sequence[str] = ()  # public keys that are let in
    env: Mapping[str, str] = field(default_factory=dict)  # of its first process, not of sessions
    onstart: str = ""  # run at each boot
    files: Mapping[str, str] = field(default_factory=dict)  # name in its home → text
    gpus: Sequence[str] = ()  # lines of nvidia-smi: index, name, memory, driver


class Machines(Protocol):
    """Boots, breaks and removes machines, by the instance's id."""

    instant: bool  # nothing here takes time: call it directly

    def start(self, order: Order) -> Address:
        """Make one and boot it; returns where its SSH server greets."""
        ...

    def halt(self, instance: int) -> None:
        """End every process in it; its disk stays."""
        ...

    def boot(self, instance: int, *, moved: bool = False) -> Address:
        """Boot one that is halted, at the same address or at another."""
        ...

    def remove(self, instance: int) -> None:
        """End every process in it, and its disk. One that was never there is fine."""
        ...

    def let_in(self, instance: int, keys: Sequence[str]) -> None:
        """Let in those keys and no others."""
        ...

    def harm(self, instance: int, how: Harm) -> None:
        """Break it so. Permanent where such a machine cannot be broken so."""
        ...


class NoMachines:
    """Instances without anything behind them: for what only looks at the API."""

    instant = True

    def start(self, order: Order) -> Address:
        return _nowhere(order.instance)

    def halt(self, instance: int) -> None:
        """Nothing runs."""

    def boot(self, instance: int, *, moved: bool = False) -> Address:
        return _nowhere(instance + (1 if moved else 0))

    def remove(self, instance: int) -> None:
        """Nothing is there."""

    def let_in(self, instance: int, keys: Sequence[str]) -> None:
        """Nobody comes."""

    def harm(self, instance: int, how: Harm) -> None:
        """Nothing breaks."""


def cannot(machines: str, how: Harm) -> Permanent:
    """Return the refusal to break a machine in a way that it cannot be broken."""
    return Permanent(f"{machines} cannot be broken so: {how.value}", driver="sim-vast", operation="harm")


def _nowhere(instance: int) -> Address:
    return f"203.0.113.{instance % 250 + 1}", 40_000 + instance % 20_000


class Hands:
    """Works on machines beside the service: what is asked for one instance is done in order, and nobody waits."""

    def __init__(self, machines: Machines) -> None:
        self.machines = machines
        self.failures: list[BaseException] = []
        self._threads: dict[int, ThreadPoolExecutor] = {}

    def do(self, instance: int, method: str, *arguments: Any, **named: Any) -> Future[Any]:
        """Call a method of `machines`."""
        work = getattr(self.machines, method)
        if self.machines.instant:
            done: Future[Any] = Future()
            done.set_result(work(*arguments, **named))
            return done
        thread = self._threads.setdefault(instance, ThreadPoolExecutor(1, f"instance-{instance}"))
        promised = thread.submit(work, *arguments, **named)
        promised.add_done_callback(self._look)
        return promised

    def _look(self, done: Future[Any]) -> None:
        if (error := done.exception()) is not None:
            self.failures.append(error)

    def forget(self, instance: int) -> None:
        """Nothing more will be asked for it."""
        if (thread := self._threads.pop(instance, None)) is not None:
            thread.shutdown(wait=False)

    def close(self) -> None:
        """Wait for everything that was asked for."""
        for thread in self._threads.values():
            thread.shutdown(wait=True)
