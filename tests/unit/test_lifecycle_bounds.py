"""What bounds a job whatever happens: its limits, a bug of ours, a clock that is wrong, a machine that nobody claims."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest

from remote_trainer import effects as fx
from remote_trainer import lifecycle
from remote_trainer.errors import InvariantBroken
from remote_trainer.lifecycle import Decision, Moment
from remote_trainer.model import HostFacts, Job, Limits, Phase, Reason, StepState, Verdict
from remote_trainer.policy import Policy, limit, unclaimed
from remote_trainer.policy.forecast import FETCH_S
from remote_trainer.policy.money import BILLED_TAIL_S
from remote_trainer.worker.clock import SystemClock
from tests.unit.life import BORROWED, NOW, OFFER, RENTED, Life, a_job, kinds

HOUR_S = 3600.0
END_S = FETCH_S + BILLED_TAIL_S


# ----------------------------------------------------------------------------------------------------------------- limits


def test_the_first_limit_that_is_reached_counts() -> None:
    """Half a dollar an hour reaches one dollar after two hours, less what the end takes, before or after ``max_hours``."""
    life = Life(a_job(limits=Limits(max_hours=3, max_cost=Decimal(1))), RENTED)
    assert limit(life.job) is None
    life.to_executing()
    assert limit(life.job) == (NOW + timedelta(hours=2, seconds=-END_S), Reason.COST_LIMIT)
    sooner = replace(life.job, limits=Limits(max_hours=1, max_cost=Decimal(1)))
    assert limit(sooner) == (NOW + timedelta(hours=1), Reason.TIME_LIMIT)


def test_what_earlier_attempts_cost_counts() -> None:
    """A second attempt has what the first one left, and nothing if that is all."""
    life = Life(a_job(limits=Limits(max_hours=24, max_cost=Decimal(1))), RENTED)
    life.to_executing()
    life.later(1.5 * HOUR_S - Policy().gone_confirm_s)
    life.missing()
    life.see(instances=(), instances_at=life.now)
    assert len(life.job.attempts) == 2
    life.see(offer=replace(OFFER, price_per_hour=Decimal("0.25")))
    life.see(created=life.instance())
    left_s = (HOUR_S / 2 - BILLED_TAIL_S) * 2 - END_S
    assert limit(life.job) == (NOW + timedelta(seconds=1.5 * HOUR_S + left_s), Reason.COST_LIMIT)


@pytest.mark.parametrize(("code", "overtime_s"), [(0, Policy().fetch_overtime_s), (1, Policy().fetch_partial_timeout_s)])
def test_fetching_from_a_rented_machine_ends_soon_after_a_limit(code: int, overtime_s: float) -> None:
    """Results are worth an hour beyond the limits, remains ten minutes."""
    life = Life(a_job(limits=Limits(max_cost=Decimal(1))), RENTED)
    life.to_executing()
    life.later(1.999 * HOUR_S - END_S)
    life.step("s1.1", StepState.EXITED, code)
    assert life.job.phase is Phase.FETCHING
    life.later(overtime_s - 60)
    assert life.job.phase is Phase.FETCHING
    life.later(70)
    assert life.job.phase is Phase.RELEASING


def test_fetching_from_a_borrowed_machine_takes_its_time() -> None:
    """Nothing costs money there: the results of a job that succeeded are waited for as long as ever."""
    life = Life(a_job(limits=Limits(max_hours=1)), BORROWED)
    life.to_executing()
    life.later(HOUR_S - 1)
    life.step("s1.1", StepState.EXITED, 0)
    life.later(Policy().fetch_timeout_s - 60)
    assert life.job.phase is Phase.FETCHING


def test_the_provider_is_told_to_end_a_machine_before_anything_is_done_with_it() -> None:
    """Where it has a scheduler: some hours after the job's limits the machine is gone, should every worker be."""
    life = Life(a_job(limits=Limits(max_hours=3)), replace(RENTED, scheduler=True))
    life.tick()
    life.see(offer=OFFER)
    guards = [effect for effect in life.see(created=life.instance()).effects if isinstance(effect, fx.Guard)]
    assert [guard.until for guard in guards] == [NOW + timedelta(hours=3, seconds=Policy().reap_overtime_s)]
    life.see(host=HostFacts(incarnation="inc", boot="b"))
    assert life.job.phase is Phase.PROVISIONING
    life.see(guarded={"i1": guards[0].until})
    assert life.job.phase is Phase.TRANSFERRING


@pytest.mark.parametrize(("moved_h", "told"), [(0.5, False), (2.0, True), (-2.0, True)])
def test_the_end_that_the_provider_was_told_moves_with_the_limits(moved_h: float, told: bool) -> None:
    """A worker that takes a job over, or a limit that moves by an hour, makes it a wish again, in every phase with a machine."""
    life = Life(a_job(limits=Limits(max_hours=9)), replace(RENTED, scheduler=True))
    life.to_executing()
    until = NOW + timedelta(hours=9, seconds=Policy().reap_overtime_s)
    decision = life.see(guarded={"i1": until + timedelta(hours=moved_h)})
    assert [effect.until for effect in decision.effects if isinstance(effect, fx.Guard)] == [until] * told


# ------------------------------------------------------------------------------------------------------------ bugs of ours


def _broken(job: Job, moment: Moment) -> Decision:
    raise InvariantBroken("no rule for that")


@pytest.mark.parametrize("end", ["cancel", "limit"])
def test_a_job_that_a_bug_keeps_still_can_be_cancelled_and_keeps_its_limits(end: str) -> None:
    """Its machine is kept for a human, and given back when the user says so or a limit is reached."""
    life = Life(a_job(limits=Limits(max_hours=2)), RENTED)
    life.to_executing()
    standing = life.see(broken="InvariantBroken: no rule for that")
    assert "stands still" in life.job.note and not standing.effects
    assert standing.wake_at is not None
    life.later(HOUR_S)
    assert life.job.phase is Phase.EXECUTING
    life.cancel() if end == "cancel" else life.later(HOUR_S)
    assert life.job.phase is Phase.RELEASING
    assert "Destroy" in kinds(life.see(instances=(life.instance(),), instances_at=life.now))
    assert life.job.attempts[0].verdict is (Verdict.CANCELLED if end == "cancel" else Verdict.FAILED)


# ---------------------------------------------------------------------------------------------------------------- clocks


@pytest.mark.parametrize("wrong_s", [-HOUR_S, HOUR_S / 3])
def test_another_workers_wrong_clock_neither_hurries_nor_delays(wrong_s: float) -> None:
    """Who takes over counts the provider's lag on its own clock, from the moment it took the job."""
    life = Life(a_job(), RENTED)
    life.tick()
    life.see(offer=OFFER)
    life.now += timedelta(seconds=wrong_s)
    life.restart()
    assert "Create" not in kinds(life.see(instances=(), instances_at=life.now))
    life.later(RENTED.visibility_lag_s + Policy().lag_margin_s)
    life.see(instances=(), instances_at=life.now)
    assert life.job.attempts[0].requested_at is None, "given up: it may ask anew"


def test_a_clock_that_is_set_wrong_is_followed_slowly() -> None:
    """A jump of an hour changes no measured duration by more than a tenth, and is made good in the end."""
    wall, since_boot = [1e9], [50.0]

    def wait(seconds: float) -> None:
        wall[0] += seconds
        since_boot[0] += seconds

    clock = SystemClock(lambda: wall[0], lambda: since_boot[0])
    begun = clock.now()
    for jump in (HOUR_S, -2 * HOUR_S):
        wall[0] += jump
        before = clock.now()
        wait(100)
        assert 90 <= (clock.now() - before).total_seconds() <= 110
    assert (clock.now() - begun).total_seconds() == pytest.approx(200, abs=20)
    for _ in range(1000):
        wait(60)
        clock.now()
    assert clock.now().timestamp() == pytest.approx(wall[0], abs=0.001)


# ---------------------------------------------------------------------------------------------------------------- listings


def test_one_listing_that_lacks_an_instance_is_not_believed() -> None:
    """A provider's bad moment ends no training: it is asked again soon, and all is well once the instance is listed."""
    life = Life(a_job(), RENTED)
    life.to_executing()
    life.step("s1.1", StepState.RUNNING, drained=False)
    life.later(300)
    doubt = life.see(instances=(), instances_at=life.now)
    assert doubt.wake_at is not None and (doubt.wake_at - life.now).total_seconds() <= 5
    assert "FindInstance" in kinds(life.later(5))
    life.see(instances=(life.instance(),), instances_at=life.now)
    life.later(Policy().gone_confirm_s)
    life.see(instances=(), instances_at=life.now)
    assert life.job.phase is Phase.EXECUTING, "the first of a new row"
    life.missing()
    assert life.job.attempts[0].reason is Reason.INSTANCE_GONE


# ----------------------------------------------------------------------------------------------------------------- claims


def test_only_a_live_attempt_claims_a_machine() -> None:
    """Unknown jobs, jobs that have ended, and attempts that are over claim nothing."""
    life = Life(a_job(), RENTED)
    life.to_executing()
    label = life.job.attempts[0].label
    policy = Policy()
    assert not unclaimed(life.job, label, life.now, policy)
    assert unclaimed(None, label, life.now, policy)
    assert unclaimed(life.job, label[:-1] + "2", life.now, policy)
    assert unclaimed(replace(life.job, phase=Phase.FAILED), label, life.now, policy)
    life.later(300)
    life.missing()
    life.see(instances=(), instances_at=life.now)
    assert unclaimed(life.job, label, life.now, policy)
    assert not unclaimed(life.job, life.job.attempts[1].label, life.now, policy)


def test_nothing_is_claimed_long_after_the_limits() -> None:
    """Whatever keeps a job from ending: two hours after its limit its machine is nobody's."""
    life = Life(a_job(limits=Limits(max_hours=1)), RENTED)
    life.to_executing()
    label, policy = life.job.attempts[0].label, Policy()
    assert not unclaimed(life.job, label, NOW + timedelta(hours=2.9), policy)
    assert unclaimed(life.job, label, NOW + timedelta(hours=3), policy)


def test_a_rule_that_fails_is_told_and_tried_by_the_next_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a bug broke is not saved: another worker, perhaps a mended one, tries the rules again."""
    life = Life(a_job(), RENTED)
    life.to_executing()
    monkeypatch.setitem(lifecycle._DECIDE, Phase.EXECUTING, _broken)
    with pytest.raises(InvariantBroken):
        life.tick()
    life.see(broken="no rule for that")
    monkeypatch.undo()
    assert "StartStep" in kinds(life.restart())
    assert not life.job.note
