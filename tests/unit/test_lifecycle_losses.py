"""The functional core where something fails or is lost: what is tried again, and what ends the job."""

from __future__ import annotations

import pytest

from remote_trainer import effects as fx
from remote_trainer.effects import Seen, Severity
from remote_trainer.model import (
    Limits,
    Phase,
    Reason,
    Retries,
    StepState,
)
from tests.unit.life import OFFER, RENTED, Life, a_job, kinds


def test_silence_is_not_death() -> None:
    """An unreachable host changes nothing but the note, for as long as the job may last."""
    life = Life(a_job())
    life.to_executing()
    life.step("s1.1", StepState.RUNNING, drained=False)
    for _ in range(100):
        life.trouble(fx.FollowStep, Severity.RETRY)
        life.later(600)
    assert life.job.phase is Phase.EXECUTING
    assert life.job.note == "what happened"
    assert len(life.job.attempts) == 1


def test_a_failed_step_is_run_again_after_its_backoff() -> None:
    """Runs are numbered and bounded by the recipe."""
    life = Life(a_job(retries=Retries(max=1, backoff_s=10)))
    life.to_executing()
    life.step("s1.1", StepState.EXITED, 3)
    assert [run.key for run in life.job.attempts[0].steps] == ["s1.1"]
    assert life.tick().wake_at is not None
    assert "StartStep" in kinds(life.later(11))
    life.step("s1.2", StepState.EXITED, 3)
    assert (life.job.phase, life.job.attempts[0].reason) == (Phase.FETCHING, Reason.STEP_FAILED)
    life.collected()
    life.see(cleaned=True)
    assert (life.job.phase, life.job.message) == (Phase.FAILED, "step s1 exited with code 3 after 2 runs")


def test_exit_codes_that_are_not_worth_another_run() -> None:
    """With on_exit only those codes are retried."""
    life = Life(a_job(retries=Retries(max=3, on_exit=(75,))))
    life.to_executing()
    life.step("s1.1", StepState.EXITED, 1)
    assert life.job.phase is Phase.FETCHING


@pytest.mark.parametrize(
    ("state", "why", "reason"),
    [
        (StepState.LOST, "reboot", Reason.HOST_REBOOTED),
        (StepState.LOST, "supervisor", Reason.SUPERVISOR_LOST),
        (StepState.EXITED, "deadman", Reason.DEADMAN),
    ],
)
def test_a_lost_step_ends_the_attempt_and_the_next_one_begins(state: StepState, why: str, reason: Reason) -> None:
    """What the host provably lost is tried again on a new attempt, after what is left was fetched."""
    life = Life(a_job())
    life.to_executing()
    life.step("s1.1", state, 143 if state is StepState.EXITED else None, why=why)
    assert life.job.phase is Phase.FETCHING
    life.collected()
    life.see(cleaned=True)
    assert life.job.phase is Phase.PROVISIONING
    assert [attempt.reason for attempt in life.job.attempts] == [reason, None]
    assert life.job.attempts[1].label == "rt-dep-j1-a2"


def test_attempts_are_bounded() -> None:
    """After the last attempt a loss is a failure that says so."""
    life = Life(a_job(limits=Limits(max_attempts=2)))
    for _ in range(2):
        life.seen = Seen(since=life.now)
        life.to_executing()
        life.step("s1.1", StepState.LOST, why="reboot")
        life.collected()
        life.see(cleaned=True)
    assert (life.job.phase, life.job.reason) == (Phase.FAILED, Reason.ATTEMPTS_EXHAUSTED)


def test_a_vanished_instance_skips_the_fetching() -> None:
    """Only a complete listing after the lag that lacks the instance says that it is gone."""
    life = Life(a_job(), RENTED)
    life.to_executing()
    life.step("s1.1", StepState.RUNNING, drained=False)
    life.see(instances=(), instances_at=life.now)
    assert life.job.phase is Phase.EXECUTING
    life.later(120)
    life.see(instances=(), instances_at=life.now)
    assert life.job.attempts[0].reason is Reason.INSTANCE_GONE
    assert life.job.phase is Phase.RELEASING, "a second listing must agree"
    life.see(instances=(), instances_at=life.now)
    assert len(life.job.attempts) == 2


def test_success_without_its_required_outputs_is_a_failure() -> None:
    """DONE means verified: nothing found for a required output fails the job."""
    life = Life(a_job())
    life.to_executing()
    life.step("s1.1", StepState.EXITED, 0)
    life.collected("final")
    life.see(cleaned=True)
    assert (life.job.phase, life.job.reason) == (Phase.FAILED, Reason.ARTIFACTS_MISSING)


def test_a_host_that_cannot_serve_ends_the_job_before_anything_runs() -> None:
    """A borrowed machine cannot be changed for another one."""
    life = Life(a_job())
    life.tick()
    life.see(offer=OFFER)
    life.see(created=life.instance())
    life.trouble(fx.PrepareHost, Severity.FATAL, Reason.HOST_UNSUITABLE)
    assert (life.job.phase, life.job.reason) == (Phase.FAILED, Reason.HOST_UNSUITABLE)
