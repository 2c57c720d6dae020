"""What goes to and from machines: counted for each attempt, and whether it goes fast enough.

A rented machine whose line is too slow for the data is changed for another one, judged by the first inputs themselves: nothing is sent
only to measure, and inputs that are over sooner are never judged. Our own line is shared by all transfers of this worker, so each is held
to its part of the floor; and machines that seem slow one after the other are not: then the line is ours, and the next is kept.

Rules for editing: counts are hints for people and prices; no decision but the floor rests on them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from remote_trainer import log
from remote_trainer.errors import HostLacks
from remote_trainer.model import Job
from remote_trainer.ports import Progress

_log = log.get()

SETTLES_S = 5.0  # until what lies on the way hides nothing any more
MEASURED_S = 20.0
_IN_A_ROW = 2  # so many other machines were slow, one after the other: then it is our own line
_REMEMBERED_S = 3600.0


class Uplink:
    """Our own line, as far as transfers to rented machines tell."""

    def __init__(self) -> None:
        self.under_way = 0  # transfers of ours
        self._slow: dict[str, float] = {}  # machines, one after the other → when, by the loop's clock

    def blames(self, machine: str, mbit: float, floor: float) -> bool:
        """Is it a machine's fault that so much came through to it? ``floor`` is its part of our line."""
        now = asyncio.get_running_loop().time()
        if mbit >= floor:
            self._slow.clear()
            return False
        self._slow = {other: at for other, at in self._slow.items() if other != machine and now - at < _REMEMBERED_S}
        others = len(self._slow)
        self._slow[machine] = now
        return others < _IN_A_ROW


class Traffic:
    """Bytes that a job's attempts have sent and fetched since they were last written down, by label."""

    def __init__(self) -> None:
        self.sent: Counter[str] = Counter()
        self.fetched: Counter[str] = Counter()

    def onto(self, job: Job) -> Job:
        """Return the job with what was counted, which is forgotten here: called when the job is saved anyway."""
        if not self.sent and not self.fetched:
            return job
        attempts = tuple(
            replace(
                each,
                bytes_in=each.bytes_in + self.sent.pop(each.label, 0),
                bytes_out=each.bytes_out + self.fetched.pop(each.label, 0),
            )
            for each in job.attempts
        )
        return replace(job, attempts=attempts)


@dataclass
class Way:
    """The way to one attempt's machine, for what is sent there."""

    traffic: Traffic
    label: str
    uplink: Uplink | None = None  # of a machine that must take at least so much, by the name under which it is remembered
    machine: str = ""
    min_mbit: float = 0.0
    _sent: int = 0
    _judged: bool = False

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Take our own line while a transfer lasts."""
        if self.uplink is None:
            yield
            return
        self.uplink.under_way += 1
        try:
            yield
        finally:
            self.uplink.under_way -= 1

    def count(self, size: int) -> None:
        """Note that so many bytes were sent."""
        self._sent += size
        self.traffic.sent[self.label] += size

    def counting(self, before: int = 0) -> Progress:
        """Return a progress that counts; ``before`` is where it begins."""
        at = before

        def progress(done: int, total: int) -> None:
            nonlocal at
            self.count(max(0, done - at))
            at = done

        return progress

    async def judge(self, address: str, size: int) -> None:
        """Watch a transfer of so many bytes, once, while it runs. HostLacks when it is too slow and that is the machine's fault."""
        if self.uplink is None or not self.min_mbit or self._judged:
            return
        began = self._sent
        await asyncio.sleep(SETTLES_S)
        before, at_once = self._sent, self.uplink.under_way
        await asyncio.sleep(MEASURED_S)
        if self._sent - began >= size:
            return  # all is on its way: what is waited for is the machine's word that it is whole
        self._judged = True
        floor = self.min_mbit / max(1, at_once, self.uplink.under_way)
        mbit = (self._sent - before) * 8 / 1e6 / MEASURED_S
        if self.uplink.blames(self.machine, mbit, floor):
            raise HostLacks(f"{address} takes {mbit:.2f} Mbit/s from here, at least {floor:.2f} are wanted")
        if mbit < floor:
            _log.warning(
                log.event("transferring"), action="slow_line", address=address, mbit=round(mbit, 2), floor=round(floor, 2)
            )
