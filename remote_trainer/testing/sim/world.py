"""The simulated world outside the workers: a provider, its machines, an object store; and the promises, checked as things happen.

Rules for editing: verbs here take effect at once and never fail for the network (ports.py does that). A broken promise raises Broken
with the trace of the life so far.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field

from remote_trainer.errors import Fenced, HostWiped
from remote_trainer.lifecycle import TRANSITIONS
from remote_trainer.model import Instance, InstanceState, Job, Phase, StepState, Verdict
from remote_trainer.ports import StepStatus
from remote_trainer.testing.sim.faults import Faults

_LINE_EVERY_S = 4.0


class Broken(AssertionError):
    """A promise of the product does not hold."""


@dataclass
class Process:
    """A step run on a machine: what it prints and how it ends follow from the times."""

    key: str
    started: float
    ends: float
    code: int
    why: str = ""
    state: StepState = StepState.EXITED  # once it has ended

    def status(self, now: float) -> StepStatus:
        """Return the supervisor's word."""
        if now < self.ends:
            return StepStatus(state=StepState.RUNNING, size=len(self.log(now)))
        code = self.code if self.state is StepState.EXITED else None
        return StepStatus(state=self.state, exit_code=code, size=len(self.log(now)), why=self.why)

    def log(self, now: float) -> bytes:
        """Return what it has printed."""
        if self.state is StepState.CANCELLED:
            return b""
        lines = int(max(0.0, min(now, self.ends) - self.started) / _LINE_EVERY_S)
        return b"".join(b"%s line %d\n" % (self.key.encode(), number) for number in range(lines))

    def end(self, at: float, state: StepState, code: int, why: str) -> None:
        """Let it end earlier."""
        if at < self.ends:
            self.ends, self.state, self.code, self.why = at, state, code, why


@dataclass
class Machine:
    """A host with our supervisor: one claim per step run, fences per attempt."""

    world: World
    incarnation: str
    silent_until: float = 0.0
    gone: bool = False
    runs: dict[tuple[str, str], Process] = field(default_factory=dict)
    fences: dict[str, int] = field(default_factory=dict)
    wiped: bool = False

    def answers(self) -> bool:
        """Can it be reached now?"""
        return not self.gone and self.world.now >= self.silent_until

    def check(self, label: str, token: int) -> None:
        """Refuse older tokens than the highest seen."""
        if token < self.fences.get(label, 0):
            raise Fenced(f"{label}: token {token} is old")
        self.fences[label] = token

    def start(self, label: str, key: str, token: int, incarnation: str) -> StepStatus:
        """Start at most once; adopt what was started."""
        self.check(label, token)
        if self.wiped or incarnation != self.incarnation:
            raise HostWiped(f"{label}: another disk")
        if (label, key) not in self.runs:
            self.runs[label, key] = self.world.started(label, key)
        return self.runs[label, key].status(self.world.now)

    def stop(self, label: str, key: str, token: int, grace_s: float) -> StepStatus:
        """Ask it to end; take the start away if it has not begun."""
        self.check(label, token)
        now = self.world.now
        if (label, key) not in self.runs:
            self.runs[label, key] = Process(key, now, now, 0, state=StepState.CANCELLED)
        self.runs[label, key].end(now + self.world.dice.uniform(0, grace_s), StepState.EXITED, 143, "stop")
        return self.runs[label, key].status(now)

    def reboot(self) -> None:
        """Lose what runs."""
        for run in self.runs.values():
            run.end(self.world.now, StepState.LOST, 0, "reboot")

    def vanish(self) -> None:
        """Be switched off for good."""
        self.gone = True
        for run in self.runs.values():
            run.end(self.world.now, StepState.LOST, 0, "gone")


@dataclass
class Rented:
    """An instance as the provider keeps it."""

    instance: Instance
    machine: Machine
    visible_at: float
    ready_at: float
    broken: bool = False
    stopped: bool = False
    destroyed_at: float = float("inf")

    def listed(self, now: float) -> Instance:
        """Return it as a listing shows it."""
        states = (
            (self.stopped, InstanceState.STOPPED),
            (self.broken and now >= self.ready_at, InstanceState.BROKEN),
            (now >= self.ready_at, InstanceState.READY),
        )
        state = next((state for holds, state in states if holds), InstanceState.STARTING)
        return Instance(id=self.instance.id, label=self.instance.label, state=state)


class World:
    """Everything that is true in one life, whoever looks."""

    def __init__(self, seed: int, faults: Faults, *, borrowed: bool, tell: bool = False) -> None:
        self.dice, self.faults, self.borrowed = random.Random(seed), faults, borrowed  # noqa: S311 - a seed, no secret
        self.rented: dict[str, Rented] = {}
        self.own = Machine(self, "own")
        self.ours: list[Machine] = [self.own] if borrowed else []
        self.starts: Counter[tuple[str, str]] = Counter()
        self.kept: dict[str, bool] = {}  # manifests in the object store by label: complete?
        self.objects_down_until = self.store_down_until = 0.0
        self.cancelled_at: float | None = None
        self.doomed = self.dice.random() < faults.dead_hosts
        self.trace: list[str] | None = [] if tell else None
        self.breach: Broken | None = None  # the first one: a worker may take the error for one of its own and go on

    @property
    def now(self) -> float:
        """Return the virtual time, seconds."""
        return asyncio.get_running_loop().time()

    def chance(self, probability: float) -> bool:
        """Does it happen? Never once the world is quiet."""
        return probability > 0 and self.now < self.faults.quiet_s and self.dice.random() < probability

    def say(self, text: str) -> None:
        """Add to the trace."""
        if self.trace is not None:
            self.trace.append(f"{self.now:9.2f}  {text}")

    def broken(self, promise: str) -> Broken:
        """Return the error for a promise that does not hold."""
        self.say(f"BROKEN: {promise}")
        error = Broken(promise)
        self.breach = self.breach or error
        return error

    # -- the provider

    def create(self, label: str) -> Instance:
        """Rent out an instance."""
        if not self.faults.late_creates and any(one.instance.label == label for one in self.alive(label)):
            raise self.broken(f"{label} is rented twice at a time")
        number, now = len(self.rented) + 1, self.now
        boots = now + self.dice.uniform(5, 60)
        instance = Instance(id=f"i{number}", label=label, state=InstanceState.STARTING)
        lag = self.dice.uniform(0, self.faults.lag_s)
        machine = Machine(self, f"disk{number}")
        self.rented[instance.id] = Rented(instance, machine, now + lag, boots, broken=self.chance(self.faults.broken_boots))
        self.ours.append(machine)
        self.say(f"provider: {instance.id} rented as {label}, listed in {lag:.0f} s")
        return instance

    def alive(self, label_start: str = "") -> list[Rented]:
        """Return what costs money."""
        return [one for one in self.rented.values() if one.destroyed_at > self.now and one.instance.label.startswith(label_start)]

    def listing(self, label_start: str) -> list[Instance]:
        """Return what the provider shows."""
        return [one.listed(self.now) for one in self.alive(label_start) if one.visible_at <= self.now]

    def destroy(self, instance_id: str) -> None:
        """Begin to end an instance; a stubborn provider forgets it."""
        one = self.rented.get(instance_id)
        if one is None or self.chance(self.faults.stubborn):
            return
        self.say(f"provider: {instance_id} will be gone")
        one.destroyed_at = min(one.destroyed_at, self.now + self.dice.choice((0.0, 1.0, 20.0)))
        one.machine.vanish()

    def machine(self, instance: Instance) -> Machine:
        """Return the machine behind an address."""
        return self.own if instance.borrowed else self.rented[instance.id].machine

    # -- promises

    def started(self, label: str, key: str) -> Process:
        """Begin a step run, once in all the world, and never beside another one of the job."""
        self.starts[label, key] += 1
        if self.starts[label, key] > 1:
            raise self.broken(f"{label} {key} is started twice")
        now = self.now
        beside = [run for machine in self.ours for run in machine.runs.values() if now < run.ends and not run.why]
        if beside and not self.doomed:
            raise self.broken(f"{label} {key} starts beside {beside[0].key}, which still runs")
        lasts = self.dice.choice((0.0, 3.0, 30.0, 120.0)) * self.dice.uniform(0.5, 1.5)
        code = 7 if self.chance(self.faults.exits) else 0
        self.say(f"machine: {label} {key} runs for {lasts:.0f} s to exit {code}")
        return Process(key, now, now + lasts, code)

    def saved(self, before: Job, after: Job) -> None:
        """Check a document that the store has just accepted."""
        if before == after:  # repeated, because the reply was lost
            return
        if before.phase is not after.phase:
            self.say(f"store: {before.phase} -> {after.phase} (attempt {len(after.attempts)}) {after.message}")
            if (before.phase, after.phase) not in TRANSITIONS:
                raise self.broken(f"no move leads from {before.phase} to {after.phase}")
        if len(after.attempts) < len(before.attempts):
            raise self.broken("an attempt was forgotten")
        if before.phase.terminal:
            raise self.broken(f"the job was saved after it had ended {before.phase}")
        if after.phase.terminal:
            self._ended(after)

    def _ended(self, job: Job) -> None:
        attempt = job.attempt
        left = self.alive(f"rt-sim-{job.id}-")
        if left and not self.faults.late_creates:
            raise self.broken(f"the job ended {job.phase} and {left[0].instance.id} ({left[0].instance.label}) still costs money")
        if job.phase is Phase.DONE:
            if attempt is None or not self.kept.get(attempt.label):
                raise self.broken("the job is done and its outputs are not kept")
            exits = [run for machine in self.ours for (label, _), run in machine.runs.items() if label == attempt.label]
            if not exits or exits[-1].status(self.now).exit_code != 0:
                raise self.broken("the job is done and its last step did not exit 0")
        accepted = self.cancelled_at is not None and self.now > self.cancelled_at + 30
        if accepted and job.verdict is not Verdict.CANCELLED:
            raise self.broken(f"cancelled at {self.cancelled_at:.0f} s, the job ended {job.phase}")
