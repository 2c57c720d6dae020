"""Whole lives of jobs under everything that can go wrong: the real runner and core in a simulated world, one seed a life.

What is promised is checked in `remote_trainer/testing/sim/world.py` after every save, start and rent, and in `crew.py` at the end:
each step run starts once and beside no other, nothing paid for is left, DONE means kept and exit 0, logs are byte-exact, a cancel
counts, every job ends once the faults stop, nothing spins. The planted bugs show that each check bites.

More seeds: `RT_SEEDS=3000 pytest tests/sim`. A seed that fails prints its life; run it alone with `RT_SEED=<n>`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from remote_trainer import effects as fx
from remote_trainer import lifecycle
from remote_trainer.effects import Collected, Effect, Severity
from remote_trainer.errors import Ambiguous, HostUnreachable, RemoteTrainerError, Transient
from remote_trainer.lifecycle import Decision, Moment, renting, rules, running
from remote_trainer.model import Job, Manifest, Phase, Reason, StepState
from remote_trainer.testing.sim.faults import CALM, CHAOS, STRICT, Faults
from remote_trainer.testing.sim.store import SimStore
from remote_trainer.testing.sim.world import Machine
from remote_trainer.worker import runner, trouble
from remote_trainer.worker.perform import Performer
from tests.sim.crew import Lived, Process, RealProcess, SimPerformer, live

SEEDS = int(os.environ.get("RT_SEEDS", "300"))
ONE = os.environ.get("RT_SEED")

Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def _silent() -> Iterator[None]:
    """Thousands of lives tell nobody what goes wrong in them: rendering it would take most of the time."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def lives(faults: Faults, share: float, *, borrowed: bool = False, kind: type[Process] = Process) -> list[Lived]:
    """Run a share of the seeds; the first that fails is run again to tell its life."""
    seeds = [int(ONE)] if ONE else range(max(1, int(SEEDS * share)))
    lived = []
    for seed in seeds:
        try:
            lived.append(live(seed, faults, borrowed=borrowed, kind=kind))
        except AssertionError:
            live(seed, faults, borrowed=borrowed, kind=kind, tell=True)
            raise
    return lived


# ---------------------------------------------------------------------------------------------------------------- promises


def test_without_faults_every_job_ends_in_its_first_attempt() -> None:
    """A calm world: done, unless the job's own limits say otherwise."""
    for life in lives(CALM, 0.05):
        assert len(life.job.attempts) == 1
        assert life.job.phase is Phase.DONE or life.job.reason in (Reason.STEP_TIMEOUT, Reason.CANCELLED_BY_USER)


def test_rented_machines_with_no_net_below() -> None:
    """Workers that pause and die, a provider that lies, hosts that fall silent: nothing doubled, lost or left, without a reaper."""
    ends = {life.job.phase for life in lives(STRICT, 0.4)}
    assert ONE or ends == {Phase.DONE, Phase.FAILED, Phase.CANCELLED}


def test_rented_machines_when_requests_arrive_whenever() -> None:
    """Requests of dead and paused workers take effect at any time; the reaper returns what no live attempt claims."""
    lives(CHAOS, 0.25)


def test_borrowed_machines() -> None:
    """The same machine serves every attempt; nothing is rented, and no attempt runs beside another."""
    lives(STRICT, 0.3, borrowed=True)


def test_the_worker_as_it_is_shipped(monkeypatch: Patch) -> None:
    """The same under the real loop: intake, heartbeats, self-fencing and drain."""
    monkeypatch.setattr(runner, "Performer", SimPerformer)
    lives(STRICT, 0.05, kind=RealProcess)
    lives(STRICT, 0.05, borrowed=True, kind=RealProcess)


def test_a_life_can_be_lived_again() -> None:
    """One seed is one life, event by event."""
    assert live(7, CHAOS, tell=True).trace == live(7, CHAOS, tell=True).trace


# ------------------------------------------------------------------------------------------------------------ planted bugs


def _create_again_when_unsure(patch: Patch) -> None:
    create = Performer._create

    async def twice(self: Any, label: str) -> None:
        try:
            await create(self, label)
        except Ambiguous:
            await create(self, label)

    patch.setattr(Performer, "_create", twice)


def _believe_absence_at_once(patch: Patch) -> None:
    patch.setattr(renting, "settled_at", lambda moment: moment.seen.since)
    patch.setattr(rules, "settled_at", lambda moment: moment.seen.since)


def _end_before_the_instance_is_gone(patch: Patch) -> None:
    patch.setattr(renting, "_returning", renting._finish)


def _look_once_and_end(patch: Patch) -> None:
    patch.setattr(renting, "settled_at", lambda moment: moment.now - timedelta(days=1))


def _no_fence_in_the_store(patch: Patch) -> None:
    patch.setattr(SimStore, "_live", lambda self, row, token: True)


def _a_failed_listing_is_an_empty_one(patch: Patch) -> None:
    find = Performer._find_instance

    async def careless(self: Any, label: str) -> None:
        try:
            await find(self, label)
        except Transient:
            now: datetime = self._shop.clock.now()
            self._patient.observe(lambda seen: replace(seen, instances=(), instances_at=now))

    patch.setattr(Performer, "_find_instance", careless)


def _drop_a_cancel_in(patch: Patch, phase: Phase) -> None:
    rule: Callable[[Job, Moment], Decision] = lifecycle._DECIDE[phase]

    def deaf(job: Job, moment: Moment) -> Decision:
        decision = rule(replace(job, cancel_requested_at=None), moment)
        return replace(decision, job=replace(decision.job, cancel_requested_at=job.cancel_requested_at))

    patch.setitem(lifecycle._DECIDE, phase, deaf)


def _drop_a_cancel_while_executing(patch: Patch) -> None:
    for phase in (Phase.EXECUTING, Phase.FETCHING, Phase.RELEASING):
        _drop_a_cancel_in(patch, phase)


def _keep_what_was_seen_of_the_last_attempt(patch: Patch) -> None:
    save = runner.JobRunner._save

    async def keeping(self: Any, job: Job) -> None:
        seen = self._seen
        await save(self, job)
        self._seen = seen

    patch.setattr(runner.JobRunner, "_save", keeping)


def _forget_the_request(patch: Patch) -> None:
    rule = renting._renting

    def forgetful(job: Job, moment: Moment) -> Decision:
        attempt = rules.current(job)
        if attempt.requested_at is not None and not moment.seen.creating and moment.seen.created is None:
            job = rules.put(job, replace(attempt, requested_at=None))
        return rule(job, moment)

    patch.setattr(renting, "_renting", forgetful)


def _start_whoever_asks(patch: Patch) -> None:
    start = Machine.start

    def unclaimed(self: Any, label: str, key: str, *more: Any) -> Any:
        self.runs.pop((label, key), None)
        return start(self, label, key, *more)

    patch.setattr(Machine, "start", unclaimed)


def _believe_an_exit_before_its_log_is_kept(patch: Patch) -> None:
    def hasty(self: Any, key: str, status: Any) -> None:
        self._patient.observe(lambda seen: seen.with_step(key, status, drained=status.state is StepState.EXITED))

    patch.setattr(Performer, "_saw", hasty)


def _silence_is_death(patch: Patch) -> None:
    patch.setattr(trouble, "_JUDGEMENT", ((HostUnreachable, Severity.WIPED, Reason.HOST_WIPED), *trouble._JUDGEMENT))


def _done_without_its_outputs(patch: Patch) -> None:
    note = runner.JobRunner._note_trouble

    def easy(self: Any, effect: Effect, error: RemoteTrainerError) -> None:
        note(self, effect, error)
        if isinstance(effect, fx.CollectOutputs) and effect.final:
            manifest = Manifest(job=self.job.id, attempt=1, artifacts=(), complete=True)
            self.observe(lambda seen: replace(seen, collected=Collected(manifest=manifest)))

    patch.setattr(runner.JobRunner, "_note_trouble", easy)


def _wait_for_ever_for_a_stop(patch: Patch) -> None:
    patch.setattr(running, "_unstopped", lambda job, moment, run: Decision(job=job))


STRICTER = replace(STRICT, every_s=20.0, lag_s=20.0, refusals=0.2)

#: What is broken, in how many seeds it must show, and on which kind of machine.
PLANTED: dict[Callable[[Patch], None], tuple[str, int, bool]] = {
    _create_again_when_unsure: ("is rented twice", 100, False),
    _believe_absence_at_once: ("is rented twice|still costs money", 40, False),
    _end_before_the_instance_is_gone: ("still costs money", 10, False),
    _look_once_and_end: ("is rented twice|still costs money", 50, False),
    _no_fence_in_the_store: ("seed", 50, False),
    _a_failed_listing_is_an_empty_one: ("seed", 10, False),
    _drop_a_cancel_while_executing: ("cancelled at", 100, False),
    _keep_what_was_seen_of_the_last_attempt: ("seed", 100, False),
    _forget_the_request: ("is rented twice", 30, False),
    _start_whoever_asks: ("is started twice", 20, False),
    _believe_an_exit_before_its_log_is_kept: ("bytes of the log", 50, False),
    _silence_is_death: ("starts beside", 60, True),
    _done_without_its_outputs: ("outputs are not kept", 20, False),
    _wait_for_ever_for_a_stop: ("never ends", 150, False),
}


@pytest.mark.parametrize("bug", PLANTED, ids=lambda bug: bug.__name__.strip("_"))
def test_a_planted_bug_is_caught(bug: Callable[[Patch], None], monkeypatch: Patch) -> None:
    """Each safeguard that is taken away breaks a promise within a few seeds."""
    promise, seeds, borrowed = PLANTED[bug]
    bug(monkeypatch)
    with pytest.raises(AssertionError, match=promise):
        for seed in range(seeds):
            live(seed, STRICTER, borrowed=borrowed)
