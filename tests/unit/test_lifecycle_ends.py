"""The functional core at the limits of a job and when it is cancelled: it ends, and what was rented is given back."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest

from remote_trainer import effects as fx
from remote_trainer.effects import Severity
from remote_trainer.lifecycle import listed
from remote_trainer.model import (
    HostFacts,
    InstanceState,
    Limits,
    Phase,
    Reason,
    Retries,
    StepState,
    Verdict,
)
from remote_trainer.policy import Policy
from remote_trainer.ports import Abilities
from tests.unit.life import BORROWED, NOW, OFFER, RENTED, Life, a_job, kinds


def test_a_step_that_outlives_its_timeout_is_stopped() -> None:
    """The stop is wished for until the supervisor reports the end, whose reason is the timeout."""
    life = Life(a_job(timeout_s=60))
    life.to_executing()
    assert life.step("s1.1", StepState.RUNNING, drained=False).wake_at == NOW + timedelta(seconds=60)
    assert "StopStep" in kinds(life.later(61))
    life.step("s1.1", StepState.EXITED, 143)
    assert life.job.attempts[0].reason is Reason.STEP_TIMEOUT


def test_max_hours_stops_the_step() -> None:
    """The deadline counts from the first attempt's start."""
    life = Life(a_job(limits=Limits(max_hours=1)))
    life.to_executing()
    life.step("s1.1", StepState.RUNNING, drained=False)
    assert "StopStep" in kinds(life.later(3601))
    assert life.job.attempts[0].steps[-1].stop_reason is Reason.TIME_LIMIT


def test_max_cost_stops_the_step() -> None:
    """At 0.50 dollars an hour one dollar lasts two hours, of which ten minutes are for the artifacts and what is billed after the end."""
    life = Life(a_job(limits=Limits(max_cost=Decimal(1))), RENTED)
    life.to_executing()
    life.step("s1.1", StepState.RUNNING, drained=False)
    assert "StopStep" not in kinds(life.later(6500))
    assert "StopStep" in kinds(life.later(101))
    assert life.job.attempts[0].steps[-1].stop_reason is Reason.COST_LIMIT


def _queued(life: Life) -> None: ...


def _failed_waiting(life: Life) -> None:
    life.to_executing()
    life.step("s1.1", StepState.EXITED, 3)


def _fetching(life: Life) -> None:
    life.to_executing()
    life.step("s1.1", StepState.EXITED, 0)


def _releasing(life: Life) -> None:
    _fetching(life)
    life.collected()


@pytest.mark.parametrize(
    "reach", [_queued, Life.tick, Life.to_transferring, Life.to_executing, _failed_waiting, _fetching, _releasing]
)
def test_a_cancel_in_any_phase_ends_cancelled(reach: object) -> None:
    """Whatever phase the wish meets: the step is stopped, what is there is fetched, the job ends CANCELLED."""
    life = Life(a_job(retries=Retries(max=2, backoff_s=100)))
    reach(life)  # type: ignore[operator]
    wishes = kinds(life.cancel())
    if life.job.phase is Phase.EXECUTING:
        assert wishes == {"StopStep"}  # nobody knows yet whether it started: the stop takes the start away
        life.step("s1.1", StepState.CANCELLED)
    if life.job.phase is Phase.FETCHING:
        life.collected()
    life.see(cleaned=True)
    assert (life.job.phase, life.job.verdict) == (Phase.CANCELLED, Verdict.CANCELLED)


def test_a_cancelled_rented_job_ends_only_when_the_instance_is_gone() -> None:
    """Terminal means returned: the destroy is repeated until a listing shows nothing under our label."""
    life = Life(a_job(), RENTED)
    life.to_executing()
    life.later(100)
    life.cancel()
    life.step("s1.1", StepState.CANCELLED)
    assert {"Destroy", "FindInstance"} <= kinds(life.collected())
    life.see(instances=(life.instance(),), instances_at=life.now)
    assert life.job.phase is Phase.RELEASING
    first, later = life.tick().effects[0], life.later(31).effects[0]
    assert isinstance(first, fx.Destroy) and isinstance(later, fx.Destroy) and first != later
    life.later(1000)
    assert life.job.phase is Phase.RELEASING and "may still cost money" in life.job.note
    life.see(instances=(), instances_at=life.now)
    assert life.job.phase is Phase.CANCELLED


def test_a_request_in_doubt_is_destroyed_too() -> None:
    """Cancelling right after an unanswered request waits for the lag and destroys what shows up."""
    life = Life(a_job(), RENTED)
    life.tick()
    life.see(offer=OFFER)
    life.unsure()
    life.cancel()
    life.see(instances=(), instances_at=life.now)
    assert life.job.phase is Phase.RELEASING
    life.later(8)
    assert "Destroy" in kinds(life.see(instances=(life.instance(),), instances_at=life.now))
    life.later(60)
    life.see(instances=(), instances_at=life.now)
    assert life.job.phase is Phase.CANCELLED


def test_a_borrowed_host_that_is_gone_cannot_keep_a_job_from_ending() -> None:
    """Nothing costs money there, so cleaning up is given up after a while."""
    life = Life(a_job())
    _releasing(life)
    life.trouble(fx.CleanHost, Severity.RETRY)
    assert life.job.phase is Phase.RELEASING
    life.later(61)
    assert life.job.phase is Phase.DONE


def _to_running(life: Life) -> None:
    life.to_executing()
    life.step("s1.1", StepState.RUNNING, drained=False)


@pytest.mark.parametrize("abilities", [BORROWED, RENTED])
def test_a_stop_that_no_host_confirms_is_given_up_in_the_end(abilities: Abilities) -> None:
    """A limit or a cancel binds also when the host is silent for ever: the machine is given back without its word."""
    life = Life(a_job(limits=Limits(max_hours=1)), abilities)
    _to_running(life)
    life.later(3601)
    life.trouble(fx.StopStep, Severity.RETRY)
    assert life.job.phase is Phase.EXECUTING
    decision = life.later(Policy().stop_timeout_s)
    assert decision.wake_at is not None and decision.wake_at > life.now
    life.later(31)
    assert life.job.phase is Phase.FETCHING
    life.later(Policy().fetch_partial_timeout_s)
    assert (life.job.phase, life.job.attempts[0].reason) == (Phase.RELEASING, Reason.TIME_LIMIT)
    assert "did not confirm" in life.job.attempts[0].message
    life.later(61)
    life.see(instances=(), instances_at=life.now)
    assert life.job.phase is Phase.FAILED


def test_a_cancel_binds_also_while_the_end_of_a_log_cannot_be_had() -> None:
    """A step that has ended, and whose host fell silent before the last bytes came, does not keep the job."""
    life = Life(a_job())
    life.to_executing()
    life.step("s1.1", StepState.EXITED, 0, drained=False)
    life.cancel()
    assert life.job.phase is Phase.EXECUTING
    life.later(Policy().stop_timeout_s + 31)
    assert (life.job.phase, life.job.attempts[0].verdict) == (Phase.FETCHING, Verdict.CANCELLED)


def test_a_step_that_ended_well_before_the_stop_came_has_succeeded() -> None:
    """A worker that was away at the deadline finds the work done: it counts."""
    life = Life(a_job(limits=Limits(max_hours=1)))
    _to_running(life)
    life.later(7200)
    assert kinds(life.restart()) == {"StopStep"}
    life.step("s1.1", StepState.EXITED, 0)
    assert (life.job.phase, life.job.attempts[0].verdict) == (Phase.FETCHING, Verdict.SUCCEEDED)


def test_a_step_that_exits_0_when_told_to_stop_has_not_succeeded() -> None:
    """A trainer that saves and leaves in good order at the deadline is not done."""
    life = Life(a_job(limits=Limits(max_hours=1)))
    _to_running(life)
    life.later(3601)
    life.step("s1.1", StepState.EXITED, 0, why="stop-f1")
    assert (life.job.phase, life.job.attempts[0].reason) == (Phase.FETCHING, Reason.TIME_LIMIT)


def test_an_instance_that_is_not_listed_yet_is_not_gone_yet() -> None:
    """Released within the lag: the empty listing says nothing before the provider has agreed to end what its reply named."""
    life = Life(a_job(), RENTED)
    life.tick()
    life.see(offer=OFFER)
    life.see(created=life.instance())
    life.cancel()
    life.seen = listed(life.seen, life.job, (), life.now)
    assert "Destroy" in kinds(life.tick())
    assert life.job.phase is Phase.RELEASING
    life.see(instances=(), instances_at=life.now)
    assert life.job.phase is Phase.CANCELLED


def test_one_empty_listing_does_not_end_an_attempt_whose_machine_nobody_has_agreed_to_end() -> None:
    """A provider that has a bad moment lists nothing; only when it goes on doing so is it believed."""
    life = Life(a_job(), RENTED)
    life.to_executing()
    life.cancel()
    life.step("s1.1", StepState.CANCELLED)
    life.collected()
    life.later(600)
    for waited_s in (0, Policy().gone_confirm_s / 2):
        life.later(waited_s)
        life.seen = listed(life.seen, life.job, (), life.now)
        assert "Destroy" in kinds(life.tick())
    life.later(Policy().gone_confirm_s)
    life.seen = listed(life.seen, life.job, (), life.now)
    life.tick()
    assert life.job.phase is Phase.CANCELLED


def test_no_attempt_ends_while_its_request_is_under_way() -> None:
    """A request to rent that has not been answered may still take effect: the job waits for the answer and what comes of it."""
    life = Life(a_job(), RENTED)
    life.tick()
    life.see(offer=OFFER, creating=frozenset({0}))
    life.cancel()
    life.later(100)
    life.see(instances=(), instances_at=life.now)
    assert life.job.phase is Phase.RELEASING
    assert "Destroy" in kinds(life.see(creating=frozenset(), answered_at=life.now, created=life.instance()))


@pytest.mark.parametrize("state", [InstanceState.STOPPED, InstanceState.BROKEN])
@pytest.mark.parametrize("reach", [Life.to_transferring, _to_running, _fetching])
def test_a_preempted_instance_ends_the_attempt(reach: object, state: InstanceState) -> None:
    """What the provider stopped runs nothing and costs money: it is given back and the next attempt begins."""
    life = Life(a_job(), RENTED)
    reach(life)  # type: ignore[operator]
    stopped = replace(life.instance(), state=state)
    assert "Destroy" in kinds(life.see(instances=(stopped,), instances_at=life.now))
    assert (life.job.phase, life.job.attempts[0].verdict) == (Phase.RELEASING, Verdict.LOST)


def test_an_instance_that_vanishes_before_it_is_prepared_is_noticed() -> None:
    """While the host does not answer yet, the provider is asked whether it is there at all."""
    life = Life(a_job(), RENTED)
    life.tick()
    life.see(offer=OFFER)
    assert "FindInstance" in kinds(life.see(created=life.instance()))
    life.later(60)
    life.missing()
    assert life.job.attempts[0].reason is Reason.INSTANCE_GONE


def test_a_listing_that_takes_long_is_waited_for() -> None:
    """The wish to look stays the same until a listing came in: nothing cuts a slow one short."""
    life = Life(a_job(), RENTED)
    life.tick()
    first = life.see(offer=OFFER).effects[-1]
    assert isinstance(first, fx.FindInstance)
    assert life.later(40).effects == (first,)
    seen = life.see(instances=(), instances_at=life.now - timedelta(seconds=39)).effects
    assert len(seen) == 1 and isinstance(seen[0], fx.FindInstance) and seen != (first,)


def test_what_a_request_made_after_all_is_destroyed_beside_the_instance_in_use() -> None:
    """Two instances under one label: the one that is not ours is ended at once, not with the job."""
    life = Life(a_job(), RENTED)
    _to_running(life)
    other = replace(life.instance(), id="i2")
    wishes = life.see(instances=(life.instance(), other), instances_at=life.now).effects
    assert [wish.instance_id for wish in wishes if isinstance(wish, fx.Destroy)] == ["i2"]


def test_a_worker_wakes_for_the_limits_of_a_job() -> None:
    """Hanging effects wake nobody: on a borrowed machine the alarm is set for ``max_hours``."""
    life = Life(a_job(limits=Limits(max_hours=24)))
    ends = NOW + timedelta(hours=24)
    assert life.tick().wake_at == ends
    life.see(offer=OFFER)
    assert life.see(created=life.instance()).wake_at == ends
    life.see(host=HostFacts(incarnation="inc", boot="b"))
    assert life.see(resume_known=True).wake_at == ends


def test_collecting_between_two_runs_waits_for_its_time_after_a_failure() -> None:
    """An unreachable host is not asked over and over while the next run of a step is waited for."""
    life = Life(a_job(retries=Retries(max=1, backoff_s=100)))
    life.to_executing()
    life.step("s1.1", StepState.EXITED, 3)
    decision = life.trouble(fx.CollectOutputs, Severity.RETRY)
    assert decision.effects == ()
    assert decision.wake_at == NOW + timedelta(seconds=9)


@pytest.mark.parametrize("hours", [float("inf"), 1e300])
def test_limits_beyond_all_dates_are_limits_nobody_reaches(hours: float) -> None:
    """Absurd limits and prices do not break the arithmetic of dates."""
    retries = Retries(max=1, backoff_s=hours, backoff_max_s=hours)
    life = Life(a_job(limits=Limits(max_hours=hours, max_cost=Decimal("1e9")), timeout_s=hours, retries=retries), RENTED)
    life.tick()
    life.see(offer=replace(OFFER, price_per_hour=Decimal("1e-9")))
    assert life.see(created=life.instance()).wake_at is not None
    life.to_executing()
    life.step("s1.1", StepState.RUNNING, drained=False)
    assert life.step("s1.1", StepState.EXITED, 1).wake_at is not None
