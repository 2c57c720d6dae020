"""What must hold in every life, checked whenever something happens that could break it.

    starts     a step run of an attempt begins once in all the world, and never beside another one of its job
    logs       what is kept of a log is what was printed, byte for byte; all of it once the run has ended by itself
    rents      nothing is rented that was not saved before, and of a race one machine is left once it is won
    resumes    an attempt goes on from the newest checkpoint that was kept
    bounds     attempts that got a machine, and tries to get one, are no more than they may be
    money      what is rented is claimed by a live attempt; with a reaper, or gone some time after nobody claims it; and nobody
               destroys what a live attempt works on
    exits      a step's exit that is written down is its process's
    ends       a job ends only when nothing of it costs money; DONE means exit 0 and outputs kept as they were written
    accounts   what ends is settled with the very save that ends it, once, and its tenant pays no more than was set aside
    fences     tokens that are accepted only grow, and no older version writes over a newer one's document
    cancels    an accepted wish to cancel counts
    progress   every job ends once the faults stop, nothing spins, nothing is left standing

Rules for editing: a promise is never softened because a seed breaks it. Where the world makes it impossible to keep, the reason stands
beside the exception, and in docs/testing.md.
"""

from __future__ import annotations

import re
from collections import Counter
from decimal import Decimal
from typing import TYPE_CHECKING

from remote_trainer.lifecycle import TRANSITIONS
from remote_trainer.model import Job, JobId, Phase, Reason, StepState, Verdict
from remote_trainer.policy import Policy, fruitless, settlement, used_up

if TYPE_CHECKING:
    from datetime import datetime
    from decimal import Decimal

    from remote_trainer.testing.sim.machine import File, StepProcess
    from remote_trainer.testing.sim.provider import Rented
    from remote_trainer.testing.sim.store import Row
    from remote_trainer.testing.sim.vastservice import Rental
    from remote_trainer.testing.sim.world import World

#: How long the reaper may take: its patience, outages of the provider, workers that are away, destroys that are forgotten.
REAPED_S = 1500.0
_CALM_S = 10.0  # the same where nothing goes wrong
_LABEL = re.compile(r"rt-sim-(.+)-a(\d+)")
#: A save that was on its way, or held up by the store, when the wish came in ends the job as it would have.
_CANCEL_S = 30.0


def job_of(label: str) -> JobId:
    """Return the job that an attempt's label names."""
    match = _LABEL.fullmatch(label)
    assert match, label
    return JobId(match[1])


class Promises:
    """Keeps what it takes to check them; breaks the world when one does not hold."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._starts: Counter[tuple[str, str]] = Counter()
        self._wrote: dict[JobId, int] = {}
        self._acted: dict[str, int] = {}
        self._unclaimed: dict[str, float] = {}  # instances, since when
        self._crowded: dict[str, float] = {}  # labels with more than one machine, since when
        self._requests: set[tuple[str, datetime, str]] = set()  # that took effect
        self._prices: set[tuple[str, Decimal]] = set()  # bids that were saved, by label
        self._restored: dict[str, dict[str, File]] = {}  # by label

    # -- what happens

    def rented(self, label: str, offer_id: str) -> None:
        """A request to rent takes effect. Without nets that is one that was saved, and each does so at most once at a time."""
        self._count("money")
        if self._world.profile.nets:
            return
        attempt = next(each for each in self._world.store.rows[job_of(label)].job.attempts if each.label == label)
        offers = [offer.id for offer in (attempt.offer, *attempt.rivals) if offer is not None]
        there = [one for one in self._world.provider.alive() if one.instance.label == label]
        if attempt.requested_at is None or offer_id not in offers:
            raise self._world.broken(f"{label}: {offer_id} is rented, and no such request was saved")
        request = (label, attempt.requested_at, offer_id)
        if request in self._requests or len(there) >= len(offers):
            raise self._world.broken(f"{label} is rented twice at a time")
        self._requests.add(request)

    def bid(self, one: Rented, price: Decimal) -> None:
        """A bid is raised: to what was saved before, be it some time ago, and within the job's cap."""
        self._count("money")
        label, job = one.instance.label, self._world.store.rows[job_of(one.instance.label)].job
        if (label, price) not in self._prices:
            raise self._world.broken(f"{one.instance.id}: {price} is bid, and that was not saved")
        if job.limits.max_cost and price > job.limits.max_cost:
            raise self._world.broken(
                f"{one.instance.id}: {price} is bid for an hour of a job that may cost {job.limits.max_cost}"
            )

    def destroyed(self, one: Rented | Rental) -> None:
        """A request to destroy takes effect: never of what a live attempt still works on."""
        self._count("money")
        label = one.instance.label
        if self._claimed(label):
            job = self._world.store.rows[job_of(label)].job
            mine = job.attempt.instance if job.attempt is not None else None
            if mine is not None and mine.id == one.instance.id and job.phase is not Phase.RELEASING:
                raise self._world.broken(f"{mine.id} ({label}) is destroyed while its job is {job.phase}")

    def started(self, label: str, key: str) -> None:
        """A step run begins."""
        self._count("starts")
        self._starts[label, key] += 1
        if self._starts[label, key] > 1:
            raise self._world.broken(f"{label} {key} is started twice")
        now, job_id = self._world.now, job_of(label)
        for machine in self._world.machines:
            for (other, beside), run in machine.runs.items():
                # One that was asked to stop may still be ending; a host that is dead for good is given up, and nobody can stop it.
                if now < run.ends and not run.why and job_of(other) == job_id and machine.silent_until < 1e9:
                    raise self._world.broken(f"{label} {key} starts beside {beside}, which still runs")

    def acted(self, label: str, token: int) -> None:
        """A host does what a worker asks for."""
        self._count("fences")
        if token < self._acted.get(label, 0):
            raise self._world.broken(f"{label}: a host obeys token {token} after {self._acted[label]}")
        self._acted[label] = token

    def wrote(self, job_id: JobId, token: int) -> None:
        """The store accepts a change."""
        self._count("fences")
        if token < self._wrote.get(job_id, 0):
            raise self._world.broken(f"{job_id}: the store obeys token {token} after {self._wrote[job_id]}")
        self._wrote[job_id] = token

    def appended(self, job_id: JobId, stream: str, log: bytearray, before: int) -> None:
        """Bytes were added to a log."""
        self._count("logs")
        there = self._printed(job_id, stream, before, len(log))
        if there is None or there != log[before:]:
            raise self._world.broken(f"{job_id}: the log {stream} is not what was printed, from byte {before} on")

    def restored(self, label: str, file: File) -> None:
        """A file of an earlier attempt is put into an output folder: only what a host once wrote."""
        self._count("ends")
        attempts = int(label.rpartition("-a")[2])
        earlier = (f"rt-sim-{job_of(label)}-a{number}" for number in range(1, attempts))
        if not any(
            file.data == one.data for other in earlier for run in self._ever(other) for one in run.written(self._world.now)
        ):
            raise self._world.broken(f"{label}: {file.path} is restored, and no host ever wrote that")
        self._restored.setdefault(label, {})[file.path] = file

    def put(self, key: str) -> None:
        """An object is stored."""
        self._count("ends")
        self.check_money()

    def saved(self, row: Row, before: Job) -> None:
        """A document was accepted."""
        after = row.job
        if before == after:  # repeated, because the reply was lost
            return
        self._count("moves")
        if before.phase is not after.phase:
            self._world.say(f"store: {after.id} {before.phase} -> {after.phase} (attempt {len(after.attempts)}) {after.message}")
            if (before.phase, after.phase) not in TRANSITIONS:
                raise self._world.broken(f"no move leads from {before.phase} to {after.phase}")
        if len(after.attempts) < len(before.attempts):
            raise self._world.broken(f"{after.id}: an attempt was forgotten")
        if after.reason is Reason.INTERNAL:
            raise self._world.broken(f"{after.id}: {after.message or 'an internal error'}")
        if after.schema < before.schema:
            raise self._world.broken(f"{after.id}: an older version wrote over a newer one's document")
        if "internal error" in after.note:
            raise self._world.broken(f"{after.id} stands still: {after.note}")
        for event in row.events[-3:]:
            if event.kind == "fault" and "internal error" in event.message:
                raise self._world.broken(f"{after.id} stands still: {event.message}")
        if after.attempt is not None and after.attempt.offer is not None:
            offer = after.attempt.offer
            self._prices.add((after.attempt.label, offer.price_per_hour - offer.disk_per_hour))
        self._check_exits(after)
        if used_up(after) > after.limits.max_attempts or fruitless(after) > Policy().max_provisioning + 3:
            raise self._world.broken(f"{after.id}: {len(after.attempts)} attempts, {used_up(after)} of them with a machine")
        if before.phase is Phase.TRANSFERRING and after.phase is Phase.EXECUTING:
            self._check_resumed(after)
        self.check_money()
        if after.phase.terminal:
            self._check_account(after)
            self._ended(row)

    def _check_account(self, job: Job) -> None:
        """What was set aside for a job that ends comes back, less what it pays."""
        self._count("accounts")
        ledger = self._world.store.ledger
        entries = [entry for entry in ledger.values() if entry.job == job.id]
        if {entry.id for entry in entries} != {entry.id for entry in settlement(job)}:
            raise self._world.broken(f"{job.id} ended and was not settled: {[entry.id for entry in entries]}")
        paid = job.reserved - sum((entry.amount for entry in entries), Decimal(0))
        if not 0 <= paid <= job.reserved:
            raise self._world.broken(f"{job.id} pays {paid} of {job.reserved}")

    def _check_exits(self, job: Job) -> None:
        """What is written down as a step's exit is what the host's process did."""
        for run in job.attempt.steps if job.attempt is not None else ():
            if run.state is StepState.EXITED and job.attempt is not None:
                there = self._run(job.attempt.label, run.key)
                if there is None or there.status(self._world.now).exit_code != run.exit_code:
                    raise self._world.broken(f"{job.attempt.label} {run.key} never exited {run.exit_code}")

    def _check_resumed(self, job: Job) -> None:
        """An attempt goes on from the newest checkpoint that an earlier one has kept, where nothing damages what is kept."""
        self._count("resumes")
        kept = [attempt.checkpoint for attempt in job.attempts[:-1] if attempt.checkpoint is not None]
        restored = job.attempts[-1].restored
        if not kept or self._world.faults.damage or any(kind == "object-rots" for kind, _ in self._world.faults.weights):
            return
        if restored is None or (restored.attempt, restored.unit) < (kept[-1].attempt, kept[-1].unit):
            raise self._world.broken(
                f"{job.attempts[-1].label} does not resume from {kept[-1].unit} of attempt {kept[-1].attempt}"
            )

    # -- money

    def check_money(self) -> None:
        """Whatever costs money is claimed, or not unclaimed for too long."""
        self._count("money")
        world = self._world
        for one in world.provider.alive():
            label, name = one.instance.label, one.instance.id
            if self._claimed(label):
                self._unclaimed.pop(name, None)
                self._check_rivals(label)
            elif not world.profile.nets:
                raise world.broken(f"{name} ({label}) still costs money and no attempt claims it")
            elif world.now - self._unclaimed.setdefault(name, world.now) > REAPED_S:
                raise world.broken(f"{name} ({label}) still costs money, {REAPED_S:.0f} s after nobody claimed it any more")

    def _check_rivals(self, label: str) -> None:
        """Of a race, one is left some time after it was won."""
        world, job = self._world, self._world.store.rows[job_of(label)].job
        there = [one for one in world.provider.alive() if one.instance.label == label]
        if len(there) < 2 or job.phase in (Phase.PROVISIONING, Phase.RELEASING):
            self._crowded.pop(label, None)
        elif world.now - self._crowded.setdefault(label, world.now) > (grace_s := self._crowd_s()):
            raise world.broken(f"{len(there)} machines are kept for {label}, {grace_s:.0f} s after one of them was chosen")

    def _crowd_s(self) -> float:
        """While all workers are away nobody gives anything back."""
        return REAPED_S + self._world.exodus_s if self._world.faults.loss else _CALM_S

    def _claimed(self, label: str) -> bool:
        row = self._world.store.rows.get(job_of(label))
        return row is not None and not row.job.phase.terminal and row.job.attempt is not None and row.job.attempt.label == label

    # -- ends

    def _ended(self, row: Row) -> None:
        job, world = row.job, self._world
        self._count("ends")
        if job.phase is Phase.DONE:
            self._check_done(job)
        late = row.cancelled_at is not None and world.now > row.cancelled_at + _CANCEL_S
        if late and job.verdict is not Verdict.CANCELLED:
            raise world.broken(f"{job.id}: cancelled at {row.cancelled_at:.0f} s, the job ended {job.phase}")
        for attempt in job.attempts:
            for run in attempt.steps:
                if run.state is StepState.EXITED:
                    self._check_whole(row, f"a{attempt.number}/{run.key}", attempt.label, run.key)
        if len(row.events) > 400 or row.saves > 1500:
            raise world.broken(f"{len(row.events)} events and {row.saves} saves of one job")
        if all(row.job.phase.terminal for row in world.store.rows.values()):
            world.over.set()

    def _check_whole(self, row: Row, stream: str, label: str, key: str) -> None:
        self._count("logs")
        run, kept = self._run(label, key), len(row.logs.get(stream, b""))
        if run is not None and kept != run.size(self._world.now):
            raise self._world.broken(f"bytes of the log {label} {key} are lost: {kept} of {run.size(self._world.now)} kept")

    def _check_done(self, job: Job) -> None:
        """DONE: the last step exited 0, and what the machine holds is in the object store, byte for byte."""
        attempt, world = job.attempt, self._world
        manifest = attempt.manifest if attempt is not None else None
        if attempt is None or manifest is None or not manifest.complete:
            raise world.broken(f"{job.id} is done and its outputs are not kept")
        run = self._run(attempt.label, attempt.steps[-1].key)
        if run is None or run.status(world.now).exit_code != 0:
            raise world.broken(f"{job.id} is done and its last step did not exit 0")
        files, kept = self._written(attempt.label), {artifact.path: artifact for artifact in manifest.artifacts}
        for path in ("model.bin", "samples.txt"):
            if path in files and path not in kept:
                raise world.broken(f"{job.id} is done and {path} is not kept")
        for path, artifact in kept.items():
            stored = world.bucket.objects.get(artifact.key)
            if stored is None or path not in files or stored.data != files[path].data:
                raise world.broken(f"{job.id} is done and {path} in the object store is not what the host has")

    def is_current(self, key: str) -> bool:
        """Does an object belong to the current attempt of its job?"""
        _, job_id, *rest = key.split("/")
        row = self._world.store.rows[JobId(job_id)]
        return bool({f"a{len(row.job.attempts)}"} & set(rest))

    # -- what was printed

    def _ever(self, label: str) -> list[StepProcess]:
        return [run for machine in self._world.machines for run in machine.ever(label)]

    def _run(self, label: str, key: str) -> StepProcess | None:
        """Return the run that began, wherever it is."""
        return next((run for run in self._ever(label) if run.key == key), None)

    def _written(self, label: str) -> dict[str, File]:
        """Return what an attempt's output folder held in the end."""
        found = dict(self._restored.get(label, {}))
        for run in self._ever(label):
            found |= {file.path: file for file in run.written(self._world.now)}
        return found

    def _printed(self, job_id: JobId, stream: str, start: int, end: int) -> bytes | None:
        """Return bytes of what a run, or all runs of an attempt together, wrote; None if it is less than that."""
        attempt, _, key = stream.partition("/")
        label = f"rt-sim-{job_id}-{attempt}"
        if key == "metrics.jsonl":
            measured = b"".join(run.metrics(self._world.now) for run in self._ever(label))
            return measured[start:end] if len(measured) >= end else None
        run = self._run(label, key)
        return run.log(start, end) if run is not None and run.size(self._world.now) >= end else None

    def _count(self, promise: str) -> None:
        self._world.checked[promise] += 1
