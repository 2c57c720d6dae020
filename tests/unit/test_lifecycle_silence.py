"""A host that is silent for hours: what is waited for how long, and what ends the wait."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from remote_trainer import effects as fx
from remote_trainer.effects import Severity
from remote_trainer.model import HostFacts, Job, Limits, Phase, Reason, StepState, Verdict
from remote_trainer.policy import Policy, deadman_s
from remote_trainer.ports import Abilities
from tests.unit.life import BORROWED, OFFER, RENTED, Life, a_job, kinds

HOUR_S = 3600.0


def _silent(life: Life, kind: type[fx.Effect], seconds: float) -> None:
    """Let an effect fail again and again for so long, with a new worker now and then."""
    for turn in range(20):
        life.later(seconds / 20)
        if turn % 7 == 6:
            life.restart()
        life.trouble(kind, Severity.RETRY)


def _preparing(life: Life) -> None:
    life.tick()
    life.see(offer=OFFER)
    life.see(created=life.instance())


def test_a_borrowed_host_that_is_away_at_first_is_waited_for() -> None:
    """Hours of silence before anything was started use up no attempt; when the host is there, the job goes on."""
    life = Life(a_job())
    _preparing(life)
    _silent(life, fx.PrepareHost, 10 * HOUR_S)
    life.see(host=HostFacts(incarnation="inc", boot="b"))
    assert life.job.phase is Phase.TRANSFERRING
    life.see(resume_known=True)
    _silent(life, fx.ShipInputs, 10 * HOUR_S)
    life.see(resume_known=True)
    life.see(shipped=True)
    assert (life.job.phase, len(life.job.attempts)) == (Phase.EXECUTING, 1)


@pytest.mark.parametrize(("kind", "patience_s"), [(fx.PrepareHost, 1800.0), (fx.ShipInputs, 6 * HOUR_S)])
def test_a_rented_machine_that_is_away_at_first_is_changed(kind: type[fx.Effect], patience_s: float) -> None:
    """It costs money while it serves nobody."""
    life = Life(a_job(limits=Limits(max_hours=240)), RENTED)
    if kind is fx.PrepareHost:
        _preparing(life)
    else:
        life.to_transferring()
    life.later(patience_s - 1)
    assert life.job.phase is not Phase.RELEASING
    life.later(1)
    assert (life.job.phase, life.job.attempts[0].verdict) == (Phase.RELEASING, Verdict.LOST)


@pytest.mark.parametrize("abilities", [BORROWED, RENTED])
def test_a_running_step_is_waited_for(abilities: Abilities) -> None:
    """Nothing is decided from silence while a step runs; a new worker wishes for the same run, and adopts it."""
    life = Life(a_job(), abilities)
    life.to_executing()
    life.step("s1.1", StepState.RUNNING, drained=False)
    _silent(life, fx.FollowStep, 20 * HOUR_S)
    assert (life.job.phase, len(life.job.attempts)) == (Phase.EXECUTING, 1)
    assert fx.StartStep(life.job.attempts[0].label, "s1.1") in life.restart().effects
    life.step("s1.1", StepState.EXITED, 0)
    assert life.job.attempts[0].verdict is Verdict.SUCCEEDED


def _past_its_timeout(abilities: Abilities) -> Life:
    life = Life(a_job(timeout_s=HOUR_S, limits=Limits(max_hours=24)), abilities)
    life.to_executing()
    life.step("s1.1", StepState.RUNNING, drained=False)
    _silent(life, fx.FollowStep, HOUR_S + 1)
    assert life.job.attempts[0].steps[-1].stop_reason is Reason.STEP_TIMEOUT
    return life


def test_a_step_that_ended_in_time_behind_the_silence_has_succeeded() -> None:
    """On a borrowed host a step's timeout alone gives nothing up that cannot be seen: hours later its success is found."""
    life = _past_its_timeout(BORROWED)
    _silent(life, fx.StopStep, 10 * HOUR_S)
    assert life.job.phase is Phase.EXECUTING
    life.step("s1.1", StepState.EXITED, 0)
    assert (life.job.phase, life.job.attempts[0].verdict) == (Phase.FETCHING, Verdict.SUCCEEDED)


@pytest.mark.parametrize("why", ["cancel", "limit", "rented"])
def test_the_wait_for_a_step_past_its_timeout_ends(why: str) -> None:
    """The user, a limit, or a machine that costs money end it without the host's word, a quarter of an hour later."""
    life = _past_its_timeout(RENTED if why == "rented" else BORROWED)
    if why == "cancel":
        life.cancel()
    elif why == "limit":
        life.later(23 * HOUR_S)
    assert life.job.phase is Phase.EXECUTING
    decision = life.restart()
    assert "StopStep" in kinds(decision) and decision.wake_at is not None
    life.later(Policy().stop_timeout_s + 31)
    assert life.job.phase is Phase.FETCHING
    assert life.job.attempts[0].verdict is (Verdict.CANCELLED if why == "cancel" else Verdict.FAILED)


def _succeeded(max_hours: float, abilities: Abilities) -> Life:
    life = Life(a_job(limits=Limits(max_hours=max_hours)), abilities)
    life.to_executing()
    life.step("s1.1", StepState.EXITED, 0)
    return life


def test_results_on_a_borrowed_host_are_waited_for_until_the_limits() -> None:
    """A success is not thrown away because its host is away for longer than the fetch's own patience."""
    life = _succeeded(24, BORROWED)
    _silent(life, fx.CollectOutputs, 23.9 * HOUR_S)
    assert life.job.phase is Phase.FETCHING
    life.collected()
    assert life.job.attempts[0].verdict is Verdict.SUCCEEDED


def test_the_wait_for_results_ends() -> None:
    """At the limits the job ends, and says what is missing; it is not run again."""
    life = _succeeded(24, BORROWED)
    life.later(24 * HOUR_S)
    assert (life.job.phase, life.job.attempts[0].reason) == (Phase.RELEASING, Reason.ARTIFACTS_MISSING)
    life.later(61)
    assert (life.job.phase, len(life.job.attempts)) == (Phase.FAILED, 1)


def test_a_cancel_ends_the_wait_for_results() -> None:
    """Who cancels a job whose results cannot be had does not wait for them."""
    life = _succeeded(24, BORROWED)
    life.later(12 * HOUR_S)
    life.cancel()
    assert life.job.phase is Phase.RELEASING


def test_a_job_without_limits_is_waited_for_as_well() -> None:
    """Where nothing ends the wait, patience does, and the next attempt begins."""
    life = Life(replace(a_job(), limits=Limits(max_hours=0)), BORROWED)
    job: Job = life.job
    assert not job.limits.max_hours
    life.to_executing()
    life.step("s1.1", StepState.EXITED, 0)
    life.later(Policy().fetch_timeout_s)
    assert life.job.phase is Phase.RELEASING


@pytest.mark.parametrize("passed_h", [0.0, 3.0, 23.5, 24.0, 30.0])
def test_the_host_itself_does_not_give_up_before_the_deadline(passed_h: float) -> None:
    """Whenever in its life a job's step starts: a host that hears nobody from then on lets it run until ``max_hours``, and an hour."""
    life = Life(a_job(limits=Limits(max_hours=24)))
    life.to_executing()
    now = life.now + timedelta(hours=passed_h)
    waits_until = now + timedelta(seconds=deadman_s(life.job, now))
    assert waits_until == max(life.now + timedelta(hours=24), now + timedelta(hours=1))
