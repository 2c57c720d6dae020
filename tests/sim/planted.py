"""Bugs to plant: each takes one safeguard away, and the promise that must then be seen to break.

Rules for editing: a bug changes the product, or the part of the world that stands for a part of it; never a promise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest

from remote_trainer import effects as fx
from remote_trainer import lifecycle, policy
from remote_trainer.effects import Collected, Effect, Severity
from remote_trainer.errors import Ambiguous, HostUnreachable, RemoteTrainerError, Transient
from remote_trainer.lifecycle import Decision, Moment, asking, machines, renting, returning, rules, running
from remote_trainer.model import SCHEMA, Instance, Job, JobId, Manifest, Phase, Reason, StepState
from remote_trainer.policy import Unclaimed
from remote_trainer.ports import Change
from remote_trainer.testing.sim.faults import NOTHING, PROFILES, Profile
from remote_trainer.testing.sim.machine import Machine
from remote_trainer.testing.sim.ports import SimDriver, SimObjects, StoreLine
from remote_trainer.testing.sim.store import SimStore
from remote_trainer.worker import holdings, perform, reaper, runner, trouble
from remote_trainer.worker.machine import Machine as RealMachine
from remote_trainer.worker.perform import Performer

Patch = pytest.MonkeyPatch


def create_again_when_unsure(patch: Patch) -> None:
    create = RealMachine.create

    async def twice(self: Any, label: str, number: int) -> None:
        try:
            await create(self, label, number)
        except Ambiguous:
            await create(self, label, number)

    patch.setattr(RealMachine, "create", twice)


def believe_absence_at_once(patch: Patch) -> None:
    patch.setattr(machines, "settled_at", lambda moment: moment.seen.since)


def end_before_the_instance_is_gone(patch: Patch) -> None:
    patch.setattr(returning, "_returning", returning._finish)


def look_once_and_end(patch: Patch) -> None:
    patch.setattr(machines, "settled_at", lambda moment: moment.now - timedelta(days=1))


def believe_a_part_of_the_listing(patch: Patch) -> None:
    patch.setattr(SimDriver, "_cut_short", lambda self, found: found)


def take_a_failed_listing_for_an_empty_one(patch: Patch) -> None:
    find = RealMachine.find_instance

    async def careless(self: Any, label: str) -> None:
        try:
            await find(self, label)
        except Transient:
            now = self._shop.clock.now()
            self._patient.observe(lambda seen: machines.listed(seen, self._patient.job, (), now))

    patch.setattr(RealMachine, "find_instance", careless)


def forget_the_request(patch: Patch) -> None:
    rule = asking.asking

    def forgetful(job: Job, moment: Moment) -> Decision:
        attempt = rules.current(job)
        if attempt.requested_at is not None and not moment.seen.creating and not moment.seen.created:
            job = rules.put(job, replace(attempt, requested_at=None))
        return rule(job, moment)

    patch.setattr(renting, "asking", forgetful)


def let_nobody_sweep(patch: Patch) -> None:
    async def blind(self: Any) -> Sequence[Instance]:
        return ()

    patch.setattr(reaper.Reaper, "sweep", blind)


def reap_what_is_claimed(patch: Patch) -> None:
    patch.setattr(holdings, "unclaimed", lambda *_: Unclaimed("planted"))


def obey_any_token_in_the_store(patch: Patch) -> None:
    patch.setattr(SimStore, "_live", lambda self, row, token: True)


def save_again_under_a_new_token(patch: Patch) -> None:
    save = StoreLine.save

    async def stubborn(self: Any, changes: Sequence[Change]) -> frozenset[JobId]:
        rows = self._store.rows
        return await save(self, [replace(change, token=rows[change.job_id].token) for change in changes])

    patch.setattr(StoreLine, "save", stubborn)


def obey_any_token_on_the_host(patch: Patch) -> None:
    def obey(self: Any, label: str, token: int) -> None:
        self.world.promises.acted(label, token)

    patch.setattr(Machine, "check", obey)


def start_whoever_asks(patch: Patch) -> None:
    start = Machine.start

    def unclaimed(self: Any, label: str, key: str, *more: Any, **named: Any) -> Any:
        self.runs.pop((label, key), None)
        return start(self, label, key, *more, **named)

    patch.setattr(Machine, "start", unclaimed)


def write_over_newer_documents(patch: Patch) -> None:
    save = StoreLine.save

    async def old(self: Any, changes: Sequence[Change]) -> frozenset[JobId]:
        if self._schema < SCHEMA:
            changes = [replace(each, job=replace(each.job, schema=self._schema)) if each.job else each for each in changes]
        return await save(self, changes)

    claim = SimStore.claim
    patch.setattr(StoreLine, "save", old)
    patch.setattr(SimStore, "claim", lambda self, *args, schema, **named: claim(self, *args, **named))


def append_without_looking_at_offsets(patch: Patch) -> None:
    def append(self: Any, row: Any, chunk: Any) -> None:
        log = row.logs.setdefault(chunk.stream, bytearray())
        size = len(log)
        log += chunk.data
        self._world.promises.appended(row.job.id, chunk.stream, log, size)

    patch.setattr(SimStore, "_append", append)


def believe_an_exit_before_its_log_is_kept(patch: Patch) -> None:
    def hasty(self: Any, key: str, status: Any) -> None:
        self._patient.observe(lambda seen: seen.with_step(key, status, drained=status.state is StepState.EXITED))

    patch.setattr(Performer, "_saw", hasty)


def take_what_was_put_for_verified(patch: Patch) -> None:
    async def trust(self: Any, key: str, *, size: int, sha256: str) -> None:
        return

    patch.setattr(SimObjects, "verify", trust)


def end_without_outputs(patch: Patch) -> None:
    note = runner.JobRunner._note_trouble

    def easy(self: Any, effect: Effect, error: RemoteTrainerError) -> None:
        note(self, effect, error)
        if isinstance(effect, fx.CollectOutputs) and effect.final:
            manifest = Manifest(job=self.job.id, attempt=1, artifacts=(), complete=True)
            self.observe(lambda seen: replace(seen, collected=Collected(manifest=manifest)))

    patch.setattr(runner.JobRunner, "_note_trouble", easy)


def take_a_new_disk_for_the_old_one(patch: Patch) -> None:
    async def trust(self: Any, label: str) -> None:
        return

    patch.setattr(Performer, "_check_disk", trust)


def take_silence_for_death(patch: Patch) -> None:
    patch.setattr(trouble, "_JUDGEMENT", ((HostUnreachable, Severity.WIPED, Reason.HOST_WIPED), *trouble._JUDGEMENT))


def ignore_that_a_stop_cannot_succeed(patch: Patch) -> None:
    """Found by a simulated life: a disk was wiped while a step that timed out was being stopped."""
    hopeless = running.hopeless
    patch.setattr(
        running, "hopeless", lambda moment, *kinds: hopeless(moment, *(kind for kind in kinds if kind is not fx.StopStep))
    )


def leave_a_damaged_record(patch: Patch) -> None:
    """Found by a simulated life: a manifest that was damaged when it was put is found there by every later put."""
    delete = SimObjects.delete

    async def spare(self: Any, key: str) -> None:
        if "/records/" not in key:
            await delete(self, key)

    patch.setattr(SimObjects, "delete", spare)


def remember_the_last_attempt(patch: Patch) -> None:
    patch.setattr(runner, "forget", lambda seen, before, after, now: seen)


def drop_a_cancel_while_executing(patch: Patch) -> None:
    for phase in (Phase.EXECUTING, Phase.FETCHING, Phase.RELEASING):
        patch.setitem(lifecycle._DECIDE, phase, _deaf(lifecycle._DECIDE[phase]))


def _deaf(rule: Callable[[Job, Moment], Decision]) -> Callable[[Job, Moment], Decision]:
    def deaf(job: Job, moment: Moment) -> Decision:
        decision = rule(replace(job, cancel_requested_at=None), moment)
        return replace(decision, job=replace(decision.job, cancel_requested_at=job.cancel_requested_at))

    return deaf


def break_a_rule(patch: Patch) -> None:
    def broken(job: Job, moment: Moment) -> Decision:
        raise ZeroDivisionError

    patch.setitem(lifecycle._DECIDE, Phase.FETCHING, broken)


def never_stop_deciding(patch: Patch) -> None:
    def restless(job: Job, moment: Moment) -> Decision:
        return Decision(job=replace(job, note=job.note + "!"))

    patch.setitem(lifecycle._DECIDE, Phase.TRANSFERRING, restless)


def ask_anew_without_the_records(patch: Patch) -> None:
    for module in (machines, asking, returning):
        patch.setattr(module, "doubtful", lambda job, moment: False)


def keep_the_losers_of_a_race(patch: Patch) -> None:
    for module in (renting, machines):
        patch.setattr(module, "surplus", lambda job, moment: ())


def count_no_tries(patch: Patch) -> None:
    patch.setattr(policy, "fruitless", lambda job: 0)


def count_every_attempt_as_fruitless(patch: Patch) -> None:
    patch.setattr(policy, "used_up", lambda job: 0)


def send_a_request_however_late(patch: Patch) -> None:
    spec = RealMachine._spec
    patch.setattr(RealMachine, "_spec", lambda self, label, number: replace(spec(self, label, number), left_s=lambda: 1.0))


def begin_anew_after_each_loss(patch: Patch) -> None:
    async def nothing(*_: Any) -> None:
        return None

    patch.setattr(perform, "newest_checkpoint", nothing)


def bid_what_was_not_saved(patch: Patch) -> None:
    for module in (renting, running):
        patch.setattr(module, "noted", lambda job, moment: None)
    patch.setattr(machines, "bid", _bid_at_once)


def _bid_at_once(job: Job, moment: Moment) -> Effect | None:
    found = machines.ours(job, moment)
    return fx.Bid(rules.current(job).label, found.min_bid * 2) if found is not None and found.min_bid else None


def _more(name: str, **faults: Any) -> Profile:
    """Return a profile in which some faults are dealt more often, so that a bug shows soon."""
    profile = PROFILES[name]
    return replace(profile, faults=replace(profile.faults, **faults))


_NETS, _VERSIONS = PROFILES["nets"], PROFILES["versions"]
_PARTIAL = _more("bare", partial_listing=0.4)
_LOSSY = _more("bare", every_s=5, weights=(("preempted", 1.0), ("host-reboots", 1.0)))
_STOPPED = replace(_more("borrowed", every_s=4, weights=(("host-wiped", 1.0), ("host-silent", 2.0))), jobs=(4,))
_SLEEPY = _more("borrowed", pauses=0.05, every_s=4, weights=(("worker-pauses", 3.0), ("host-silent", 1.0)))
_DAMAGED = _more("borrowed", damage=0.3)
_CANCELLED = _more("bare", cancels=1.0)
_UNLISTED = _more("market", unlisted=0.4)
_RACES = Profile(name="races", about="", faults=NOTHING, share=0, jobs=(3,), market=True)
_UNBOOTED = _more("bare", broken_boots=1.0, quiet_s=3000, cancels=0, exodus=0)
_LOST = _more("bare", every_s=4, quiet_s=400, cancels=0, exodus=0, weights=(("preempted", 1.0),))
_WAITING = replace(
    _more("bare", waits=1.0, pauses=0.05, every_s=3, weights=(("worker-dies", 1.0), ("worker-pauses", 4.0))), jobs=(3,)
)
_UNDAMAGED = _more("bare", every_s=6, damage=0, cancels=0, weights=(("preempted", 1.0), ("worker-dies", 1.0)))
_WANTED = _more("market", every_s=2, weights=(("prices-rise", 1.0),))
_WIPED = replace(_more("borrowed", every_s=4, weights=(("host-wiped", 1.0), ("objects-outage", 3.0))), jobs=(4,))


@dataclass(frozen=True)
class Shows:
    """Where a planted bug must show: what is told of it, in which profile."""

    promise: str
    profile: Profile = PROFILES["bare"]
    first: int = 0  # a seed that showed it when this was written; others are tried after it


def settle_nothing(patch: Patch) -> None:
    patch.setattr(runner, "settlement", lambda job: ())


PLANTED: Mapping[Callable[[Patch], None], Shows] = {
    create_again_when_unsure: Shows("is rented twice"),
    believe_absence_at_once: Shows("is rented twice|still costs money"),
    end_before_the_instance_is_gone: Shows("still costs money"),
    look_once_and_end: Shows("is rented twice|still costs money"),
    believe_a_part_of_the_listing: Shows("is rented twice|still costs money", _PARTIAL),
    take_a_failed_listing_for_an_empty_one: Shows("is rented twice|still costs money"),
    forget_the_request: Shows("is rented twice|still costs money"),
    let_nobody_sweep: Shows("after nobody claimed it", _NETS),
    reap_what_is_claimed: Shows("is destroyed while", _NETS),
    settle_nothing: Shows("was not settled"),
    obey_any_token_in_the_store: Shows("the store obeys token"),
    save_again_under_a_new_token: Shows(".", first=73),
    obey_any_token_on_the_host: Shows("a host obeys token", _SLEEPY, first=7),
    start_whoever_asks: Shows("is started twice"),
    write_over_newer_documents: Shows("an older version wrote over", _VERSIONS),
    append_without_looking_at_offsets: Shows("is not what was printed", first=109),
    believe_an_exit_before_its_log_is_kept: Shows("are lost"),
    take_what_was_put_for_verified: Shows("is not what the host has", first=87),
    end_without_outputs: Shows("is not kept|is not what the host has"),
    take_a_new_disk_for_the_old_one: Shows("is not kept", _WIPED, first=148),
    take_silence_for_death: Shows("starts beside", PROFILES["borrowed"], first=164),
    remember_the_last_attempt: Shows("never exited", _LOSSY, first=41),
    ignore_that_a_stop_cannot_succeed: Shows("never ends", _STOPPED, first=137),
    leave_a_damaged_record: Shows("never ends", _DAMAGED, first=33),
    drop_a_cancel_while_executing: Shows("cancelled at", _CANCELLED, first=23),
    ask_anew_without_the_records: Shows("is rented twice|still costs money", _UNLISTED),
    keep_the_losers_of_a_race: Shows("machines are kept", _RACES),
    count_no_tries: Shows("attempts, 0 of them", _UNBOOTED),
    count_every_attempt_as_fruitless: Shows("of them with a machine", _LOST),
    send_a_request_however_late: Shows("is rented twice|no such request|still costs money", _WAITING, first=5),
    begin_anew_after_each_loss: Shows("does not resume", _UNDAMAGED, first=4),
    bid_what_was_not_saved: Shows("that was not saved", _WANTED),
    break_a_rule: Shows("stands still"),
    never_stop_deciding: Shows("."),
}
