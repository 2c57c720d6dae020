"""Hosts with our supervisor: step runs, what they print and write, fences, and the dead man's switch.

What a run prints and writes follows from the time, so looking at it costs nothing and two who look at the same time see the same.

Rules for editing: verbs take effect at once; who may reach the machine when is dealt by ports.py. The supervisor's contract is that of
``ports.Host``: one start for each step run, the highest token wins, another disk is another incarnation.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from remote_trainer.errors import Fenced, HostWiped
from remote_trainer.model import StepState
from remote_trainer.ports import StepStatus

if TYPE_CHECKING:
    from remote_trainer.testing.sim.world import World

_BYTES_A_S = 5.0
_CHECKPOINT_EVERY_S, _METRIC_EVERY_S = 8.0, 6.0
_LINE = "{key} Zeile {number} – ütf-8 ✓\r\n"


@dataclass(frozen=True, slots=True)
class File:
    """A file of the output folder as it was from some time on."""

    path: str
    data: bytes
    written: float
    sha256: str


def _file(path: str, text: str, written: float) -> File:
    data = text.encode() * 3
    return File(path, data, written, hashlib.sha256(data).hexdigest())


@dataclass
class StepProcess:
    """A run of a step."""

    label: str
    key: str
    started: float
    ends: float
    code: int
    last: bool = False  # of the plan: writes the model
    why: str = ""
    state: StepState = StepState.EXITED  # once it has ended
    deadman_s: float = float("inf")

    @cached_property
    def _text(self) -> bytes:
        size, lines, number = int((self.ends - self.started) * _BYTES_A_S) + 1, b"", 0
        while len(lines) < size:
            lines += _LINE.format(key=self.key, number=number).encode()
            number += 1
        return lines

    @cached_property
    def _writes(self) -> tuple[File, ...]:
        lasts = self.ends - self.started
        files, name = [], f"{self.label} {self.key}"
        for number in range(1, int(lasts / _CHECKPOINT_EVERY_S) + 1):
            at = self.started + number * _CHECKPOINT_EVERY_S
            folder = f"ckpt-{int(at):06}"
            files.append(_file(f"{folder}/state", f"half of {name} {number}", at - 6))
            files.append(_file(f"{folder}/state", f"state of {name} {number}", at - 2))
            files.append(_file(f"{folder}/done", f"{number}", at - 1))
            files.append(_file("samples.txt", f"samples of {name} up to {number}", at))
        if self.last and self.code == 0:
            files.append(_file("model.bin", f"model of {name}", self.ends))
        return tuple(files)

    def status(self, now: float) -> StepStatus:
        """Return the supervisor's word."""
        if now < self.ends:
            return StepStatus(state=StepState.RUNNING, size=self.size(now))
        code = self.code if self.state is StepState.EXITED else None
        return StepStatus(state=self.state, exit_code=code, size=self.size(now), why=self.why)

    def size(self, now: float) -> int:
        """Return how many bytes it has printed."""
        if self.state is StepState.CANCELLED:
            return 0
        return int((min(now, self.ends) - self.started) * _BYTES_A_S)

    def log(self, start: int, end: int) -> bytes:
        """Return bytes of what it prints."""
        return self._text[start:end]

    def metrics(self, now: float) -> bytes:
        """Return the lines it has added to the metrics file."""
        count = int((min(now, self.ends) - self.started) / _METRIC_EVERY_S) if self.state is not StepState.CANCELLED else 0
        return b"".join(b'{"step": %d, "loss": 0.5}\n' % number for number in range(count))

    def written(self, now: float) -> list[File]:
        """Return what it has written, in order; a later file of the same path replaces the earlier one."""
        if self.state is StepState.CANCELLED:
            return []
        return [file for file in self._writes if file.written <= min(now, self.ends)]

    def end(self, at: float, state: StepState, code: int, why: str) -> None:
        """Let it end earlier."""
        if at < self.ends:
            _ = self._text, self._writes  # as they would have been
            self.ends, self.state, self.code, self.why = at, state, code, why


@dataclass
class Machine:
    """A host with our supervisor: one claim per step run, fences per attempt."""

    world: World
    incarnation: str
    silent_until: float = 0.0
    gone: bool = False
    installed: bool = False  # since the disk was new
    runs: dict[tuple[str, str], StepProcess] = field(default_factory=dict)
    fences: dict[str, int] = field(default_factory=dict)
    heard: dict[str, float] = field(default_factory=dict)  # by label: when a worker spoke last
    restored: dict[str, dict[str, File]] = field(default_factory=dict)
    inputs: dict[str, float] = field(default_factory=dict)  # by digest: when it is there
    lost: list[StepProcess] = field(default_factory=list)  # runs of disks that are wiped: only the promises know of them

    def __post_init__(self) -> None:
        self.world.machines.append(self)

    def answers(self) -> bool:
        """Can it be reached now?"""
        return not self.gone and self.world.now >= self.silent_until

    def check(self, label: str, token: int) -> None:
        """Refuse older tokens than the highest seen."""
        if token < self.fences.get(label, 0):
            raise Fenced(f"{label}: token {token} is old")
        self.world.promises.acted(label, token)
        self.fences[label] = token

    def start(self, label: str, key: str, token: int, incarnation: str, *, last: bool, deadman_s: float) -> StepStatus:
        """Start at most once; adopt what was started."""
        if incarnation != self.incarnation:
            raise HostWiped(f"{label}: another disk")
        self.check(label, token)
        self.heard[label] = self.world.now
        if (label, key) not in self.runs:
            self.runs[label, key] = self._begin(label, key, last, deadman_s)
        return self.look(label, key)

    def _begin(self, label: str, key: str, last: bool, deadman_s: float) -> StepProcess:
        world, dice = self.world, self.world.dice
        world.promises.started(label, key)
        lasts = dice.choice((0.0, 3.0, 10.0, 25.0)) * dice.uniform(0.5, 1.5)
        if world.exodus_s and not world.quiet:
            lasts = dice.choice((30.0, 1.1 * world.exodus_s))
        code = 7 if world.deal("step-fails", world.faults.exits) else 0
        world.say(f"machine: {label} {key} runs for {lasts:.0f} s to exit {code}")
        if not world.profile.nets:
            deadman_s = float("inf")
        return StepProcess(label, key, world.now, world.now + lasts, code, last, deadman_s=deadman_s)

    def look(self, label: str, key: str) -> StepStatus:
        """Return the state of a step run."""
        run = self.runs.get((label, key))
        if run is None:
            return StepStatus(state=StepState.NONE)
        self._switch(run)
        return run.status(self.world.now)

    def _switch(self, run: StepProcess) -> None:
        """The dead man's: nobody spoke for so long that the work is nobody's."""
        since = self.heard.get(run.label, run.started)
        if since + run.deadman_s < min(self.world.now, run.ends):
            self.world.say(f"machine: the dead man's switch ends {run.label} {run.key}")
            run.end(since + run.deadman_s, StepState.EXITED, 143, "deadman")

    def hear(self, label: str) -> None:
        """A worker speaks."""
        for run in self.runs.values():
            if run.label == label:
                self._switch(run)
        self.heard[label] = self.world.now

    def stop(self, label: str, key: str, token: int, grace_s: float) -> StepStatus:
        """Ask it to end; take the start away if it has not begun."""
        self.check(label, token)
        now = self.world.now
        if (label, key) not in self.runs:
            self.runs[label, key] = StepProcess(label, key, now, now, 0, state=StepState.CANCELLED)
        self.runs[label, key].end(now + self.world.dice.uniform(0, grace_s), StepState.EXITED, 143, "stop")
        return self.look(label, key)

    def files(self, label: str) -> dict[str, File]:
        """Return the output folder."""
        found = dict(self.restored.get(label, {}))
        for (owner, _), run in self.runs.items():
            if owner == label:
                found |= {file.path: file for file in run.written(self.world.now)}
        return found

    def metrics(self, label: str) -> bytes:
        """Return the metrics file."""
        return b"".join(run.metrics(self.world.now) for (owner, _), run in self.runs.items() if owner == label)

    def ever(self, label: str) -> list[StepProcess]:
        """Return every run of an attempt that began here, whatever became of the disk."""
        return [run for run in (*self.lost, *self.runs.values()) if run.label == label and run.state is not StepState.CANCELLED]

    def reboot(self, down_s: float) -> None:
        """Lose what runs, and be away for a while."""
        self.silent_until = max(self.silent_until, self.world.now + down_s)
        self._end_all("reboot")

    def wipe(self, down_s: float) -> None:
        """Come back with an empty disk."""
        self.reboot(down_s)
        self.incarnation += "'"
        self.installed = False
        self.lost += self.runs.values()
        self.runs, self.restored, self.inputs, self.fences = {}, {}, {}, {}

    def vanish(self) -> None:
        """Be switched off for good."""
        self.gone = True
        self._end_all("gone")

    def _end_all(self, why: str) -> None:
        for run in self.runs.values():
            run.end(self.world.now, StepState.LOST, 0, why)
