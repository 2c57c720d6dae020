"""The functional core: what a job does next, given what is seen."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from remote_trainer import effects as fx
from remote_trainer.effects import Collected, Effect, Seen, Severity, Trouble
from remote_trainer.errors import InvariantBroken
from remote_trainer.lifecycle import TRANSITIONS, Decision, Moment, decide, forget
from remote_trainer.lifecycle.rules import move
from remote_trainer.model import (
    HostFacts,
    Instance,
    InstanceState,
    Job,
    JobId,
    Limits,
    Manifest,
    Offer,
    Phase,
    Plan,
    PlannedStep,
    Reason,
    Resources,
    Retries,
    StepState,
    Verdict,
)
from remote_trainer.policy import Policy, choose_offer
from remote_trainer.ports import Abilities, StepStatus

NOW = datetime(2026, 1, 1, tzinfo=UTC)
BORROWED, RENTED = Abilities(borrowed=True), Abilities(visibility_lag_s=10)
OFFER = Offer(id="o1", driver="test", price_per_hour=Decimal("0.50"))


def a_job(*, steps: int = 1, retries: Retries = Retries(), timeout_s: float = 0.0, limits: Limits = Limits()) -> Job:
    planned = tuple(PlannedStep(name=f"s{n}", run="true", retries=retries, timeout_s=timeout_s) for n in range(1, steps + 1))
    plan = Plan(tool="t@1", parameters={}, steps=planned)
    return Job(id=JobId("j1"), name="j1", plan=plan, driver="test", created_at=NOW, since=NOW, limits=limits)


class Life:
    """A job and what is seen of it; time moves only when told to."""

    def __init__(self, job: Job, abilities: Abilities = BORROWED) -> None:
        self.job, self.abilities, self.seen, self.now = job, abilities, Seen(since=NOW), NOW

    def tick(self) -> Decision:
        """Decide until nothing changes, as a worker does; return the standing wishes (and those that went out on the way)."""
        sent: tuple[Effect, ...] = ()
        for _ in range(50):
            moment = Moment(seen=self.seen, now=self.now, policy=Policy(), abilities=self.abilities, deployment="dep")
            decision = decide(self.job, moment)
            if decision.job == self.job:
                return replace(decision, effects=sent + decision.effects)
            assert decision.job.phase is self.job.phase or (self.job.phase, decision.job.phase) in TRANSITIONS
            self.seen = forget(self.seen, self.job, decision.job, self.now)
            self.job = decision.job
            creates = tuple(effect for effect in decision.effects if isinstance(effect, fx.Create))
            if creates:
                self.seen = replace(self.seen, creating=True)
            sent += creates
        raise AssertionError("the job changes without end")

    def see(self, **facts: object) -> Decision:
        if "created" in facts:
            facts |= {"creating": False, "answered_at": self.now}
        self.seen = replace(self.seen, **facts)  # type: ignore[arg-type]
        return self.tick()

    def unsure(self) -> Decision:
        """The request ends without an answer."""
        return self.see(creating=False, answered_at=self.now)

    def later(self, seconds: float) -> Decision:
        self.now += timedelta(seconds=seconds)
        return self.tick()

    def restart(self) -> Decision:
        """Another worker takes over: it has seen nothing."""
        self.seen = Seen(since=self.now)
        return self.tick()

    def cancel(self) -> Decision:
        self.job = replace(self.job, cancel_requested_at=self.now)
        return self.tick()

    def trouble(self, kind: type[Effect], severity: Severity, reason: Reason = Reason.INTERNAL) -> Decision:
        known = Trouble(
            severity=severity, reason=reason, message="what happened", at=self.now, retry_at=self.now + timedelta(seconds=9)
        )
        self.seen = self.seen.with_trouble(kind, known)
        return self.tick()

    # -- whole stretches of a good life

    def instance(self) -> Instance:
        label = self.job.attempts[-1].label
        return Instance(id="i1", label=label, borrowed=self.abilities.borrowed)

    def to_transferring(self) -> Decision:
        self.tick()
        self.see(offer=OFFER)
        self.see(created=self.instance())
        return self.see(host=HostFacts(incarnation="inc", boot="b", host_key="ssh-ed25519 AAAA"))

    def to_executing(self) -> Decision:
        self.to_transferring()
        self.see(resume_known=True)
        return self.see(shipped=True)

    def step(self, key: str, state: StepState, code: int | None = None, *, drained: bool = True, why: str = "") -> Decision:
        self.seen = self.seen.with_step(key, StepStatus(state=state, exit_code=code, why=why), drained=drained)
        return self.tick()

    def collected(self, *missing: str) -> Decision:
        manifest = Manifest(job=self.job.id, attempt=1, artifacts=(), complete=True)
        return self.see(collected=Collected(manifest=manifest, missing=missing))


def kinds(decision: Decision) -> set[str]:
    return {type(effect).__name__ for effect in decision.effects}


# ----------------------------------------------------------------------------------------------------------- a good life


def test_a_good_life_on_a_borrowed_machine() -> None:
    """Each fact moves the job one phase on, and the last one ends it DONE."""
    life = Life(a_job(steps=2))
    assert kinds(life.tick()) == {"ChooseOffer"}
    assert life.job.phase is Phase.PROVISIONING
    assert life.job.attempts[0].label == "rt-dep-j1-a1"
    assert kinds(life.see(offer=OFFER)) == {"Create"}
    assert kinds(life.see(created=life.instance())) == {"PrepareHost"}
    assert kinds(life.see(host=HostFacts(incarnation="inc", boot="b"))) == {"FindCheckpoint"}
    assert life.job.phase is Phase.TRANSFERRING
    assert kinds(life.see(resume_known=True)) == {"ShipInputs"}
    assert kinds(life.see(shipped=True)) == {"StartStep"}
    assert life.job.phase is Phase.EXECUTING
    assert kinds(life.step("s1.1", StepState.RUNNING, drained=False)) == {"FollowStep", "CollectOutputs"}
    assert kinds(life.step("s1.1", StepState.EXITED, 0)) == {"StartStep"}
    assert kinds(life.step("s2.1", StepState.EXITED, 0)) == {"CollectOutputs"}
    assert life.job.phase is Phase.FETCHING
    assert kinds(life.collected()) == {"CleanHost"}
    life.see(cleaned=True)
    assert (life.job.phase, life.job.verdict, life.job.reason) == (Phase.DONE, Verdict.SUCCEEDED, Reason.COMPLETED)


def test_an_exit_counts_only_when_its_log_is_kept() -> None:
    """A step that exited is not over before its last log byte is in the store."""
    life = Life(a_job())
    life.to_executing()
    assert "FollowStep" in kinds(life.step("s1.1", StepState.EXITED, 0, drained=False))
    assert life.job.phase is Phase.EXECUTING
    life.step("s1.1", StepState.EXITED, 0)
    assert life.job.phase is Phase.FETCHING


def test_the_host_key_of_the_first_connection_is_pinned() -> None:
    """What the host showed when it was prepared is saved with the instance."""
    life = Life(a_job())
    life.to_transferring()
    assert life.job.attempts[0].instance.host_key == "ssh-ed25519 AAAA"  # type: ignore[union-attr]


# ------------------------------------------------------------------------------------------------------------- takeovers


def test_a_new_worker_starts_nothing_again_but_adopts() -> None:
    """After a takeover the running step is asked for by the idempotent start, under the same key."""
    life = Life(a_job())
    life.to_executing()
    life.step("s1.1", StepState.RUNNING, drained=False)
    assert list(life.restart().effects) == [fx.StartStep("rt-dep-j1-a1", "s1.1")]
    assert len(life.job.attempts[0].steps) == 1


def test_create_goes_out_once_and_only_with_its_saved_intent() -> None:
    """The decision that saves requested_at carries the request; no later one repeats it, not even after a restart."""
    life = Life(a_job(), RENTED)
    life.tick()
    assert "Create" in kinds(life.see(offer=OFFER))
    assert life.job.attempts[0].requested_at == NOW
    for decision in (life.tick(), life.restart(), life.later(5), life.see(offer=OFFER)):
        assert kinds(decision) == {"FindInstance"}


def test_a_request_whose_reply_was_lost_is_adopted_by_its_label() -> None:
    """An instance that shows up in the listing under our label is ours."""
    life = Life(a_job(), RENTED)
    life.tick()
    life.see(offer=OFFER)
    life.restart()
    assert "PrepareHost" in kinds(life.see(instances=(life.instance(),), instances_at=life.now))


def test_asking_again_needs_a_complete_listing_after_the_lag() -> None:
    """An empty listing within the visibility lag says nothing; a later one lets the job choose anew."""
    life = Life(a_job(), RENTED)
    life.tick()
    life.see(offer=OFFER)
    life.unsure()
    assert "Create" not in kinds(life.see(instances=(), instances_at=life.now))
    assert life.job.attempts[0].requested_at is not None
    life.later(60)
    assert "Create" in kinds(life.see(instances=(), instances_at=life.now))


def test_nothing_is_asked_again_while_the_request_is_under_way() -> None:
    """A request that has not been answered yet may still take effect."""
    life = Life(a_job(), RENTED)
    life.tick()
    life.see(offer=OFFER)
    life.later(60)
    assert "Create" not in kinds(life.see(instances=(), instances_at=life.now))


# ---------------------------------------------------------------------------------------------------- failures and losses


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


# ------------------------------------------------------------------------------------------------- limits and cancelling


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
    """At 0.50 dollars an hour one dollar lasts two hours."""
    life = Life(a_job(limits=Limits(max_cost=Decimal(1))), RENTED)
    life.to_executing()
    life.step("s1.1", StepState.RUNNING, drained=False)
    assert "StopStep" not in kinds(life.later(7100))
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
    """Released within the lag: the empty listing says nothing, and the destroy is asked for all the same."""
    life = Life(a_job(), RENTED)
    life.tick()
    life.see(offer=OFFER)
    life.see(created=life.instance())
    life.cancel()
    assert "Destroy" in kinds(life.see(instances=(), instances_at=life.now))
    assert life.job.phase is Phase.RELEASING
    life.later(60)
    life.see(instances=(), instances_at=life.now)
    assert life.job.phase is Phase.CANCELLED


def test_no_attempt_ends_while_its_request_is_under_way() -> None:
    """A request to rent that has not been answered may still take effect: the job waits for the answer and what comes of it."""
    life = Life(a_job(), RENTED)
    life.tick()
    life.see(offer=OFFER, creating=True)
    life.cancel()
    life.later(100)
    life.see(instances=(), instances_at=life.now)
    assert life.job.phase is Phase.RELEASING
    assert "Destroy" in kinds(life.see(creating=False, answered_at=life.now, created=life.instance()))


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
    life.see(instances=(), instances_at=life.now)
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


def test_a_worker_wakes_for_every_timeout() -> None:
    """Hanging effects wake nobody: the alarm is set for the phase's own patience."""
    policy, life = Policy(), Life(a_job())
    assert life.tick().wake_at == NOW + timedelta(seconds=policy.provision_timeout_s)
    life.see(offer=OFFER)
    assert life.see(created=life.instance()).wake_at == NOW + timedelta(seconds=policy.provision_timeout_s)
    life.see(host=HostFacts(incarnation="inc", boot="b"))
    assert life.see(resume_known=True).wake_at == NOW + timedelta(seconds=policy.transfer_timeout_s)


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


# ----------------------------------------------------------------------------------------------------------------- rules


def test_only_moves_of_the_table_are_possible() -> None:
    """Any other move is a bug of ours and says so."""
    with pytest.raises(InvariantBroken, match="no move leads from queued to done"):
        move(a_job(), Phase.DONE, NOW)


def test_nothing_follows_a_terminal_phase() -> None:
    """A job that has ended wishes for nothing, whatever is seen."""
    job = replace(a_job(), phase=Phase.DONE)
    assert Life(job).see(offer=OFFER, shipped=True) == Decision(job=job)


def test_every_phase_can_reach_an_end() -> None:
    """From each phase some path of the table leads to a terminal one."""
    ends = {phase for phase in Phase if phase.terminal}
    reached = set(ends)
    while more := {a for (a, b) in TRANSITIONS if b in reached} - reached:
        reached |= more
    assert reached == set(Phase)


def test_a_failed_effect_waits_for_its_time() -> None:
    """The wish comes back when the backoff is over, and the job wakes for it."""
    life = Life(a_job())
    life.to_transferring()
    life.see(resume_known=True)
    decision = life.trouble(fx.ShipInputs, Severity.RETRY)
    assert kinds(decision) == set()
    assert decision.wake_at == NOW + timedelta(seconds=9)
    assert kinds(life.later(9)) == {"ShipInputs"}


def test_the_next_attempt_asks_for_another_offer_where_there_is_one() -> None:
    """An offer that an earlier attempt was lost on comes last, whatever it costs."""
    dearer = replace(OFFER, id="o2", price_per_hour=Decimal("0.90"))
    assert choose_offer([OFFER, dearer], Resources(), Limits()) == OFFER
    assert choose_offer([OFFER, dearer], Resources(), Limits(), frozenset({"o1"})) == dearer
    assert choose_offer([OFFER], Resources(), Limits(), frozenset({"o1"})) == OFFER
