"""A rented machine of a simulated world with what ends it from within: the watchman, as host/watchman.sh does it.

Rules for editing: the watchman is gone with the container, as every process is, and knows only what he was told.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from remote_trainer.host.watchman import Orders
from remote_trainer.testing.sim.machine import Machine

_LOOK_S, _BACKOFF_S = 30.0, 600.0  # between two looks, between two farewells


@dataclass
class _Watch:
    label: str
    orders: Orders
    until: float | None  # the limit, by the world's time


@dataclass
class Watched(Machine):
    """A host with our supervisor, and perhaps a watchman over it."""

    leave: Callable[[], bool] = lambda: False  # the farewell; whether the provider has accepted it
    spoken: float = 0.0  # when a worker last did
    last_s: float | None = None  # so long after each start it ends itself, by what the request to rent gave it
    _watch: _Watch | None = None
    _starts: int = 0

    def started(self) -> None:
        """The container starts."""
        self._starts += 1
        if self.last_s is not None:
            self.world.loop.call_later(self.last_s, self._last_resort, self._starts, context=self.world.loop.outside)

    def _last_resort(self, start: int) -> None:
        if start == self._starts and not self.gone:
            self.world.say(f"machine: {self.incarnation} ends itself, as a last resort")
            if not self.leave():
                self.world.loop.call_later(_BACKOFF_S, self._last_resort, start, context=self.world.loop.outside)

    def keep_watch(self, label: str, orders: Orders) -> None:
        """Take orders, in the place of those there were."""
        begins = self._watch is None
        until = None if orders.limit_s is None else self.world.now + max(1.0, orders.limit_s)
        self._watch = _Watch(label, orders, until)
        if begins:
            self._later(_LOOK_S)

    def reboot(self, down_s: float) -> None:
        self._watch = None
        super().reboot(down_s)
        self.started()

    def vanish(self) -> None:
        self._watch = None
        super().vanish()

    def _later(self, seconds: float) -> None:
        self.world.loop.call_later(seconds, self._look, context=self.world.loop.outside)

    def _look(self) -> None:
        if self._watch is None:
            return
        if why := self._reason(self._watch):
            self.world.say(f"watchman: {self._watch.label}: {why}")
            if not self.leave():
                self._later(_BACKOFF_S)
        else:
            self._later(_LOOK_S)

    def _reason(self, watch: _Watch) -> str:
        now = self.world.now
        silent_s = now - max((self.spoken, *self.heard.values()))
        if watch.until is not None and now >= watch.until:
            return "the limit is over"
        if silent_s < watch.orders.silence_s or any(now < run.ends for run in self.runs.values()):
            return ""
        if self.files(watch.label) and silent_s < watch.orders.hold_s:  # there is no outbox in this world
            return ""
        return f"no worker has spoken for {silent_s:.0f} s"
