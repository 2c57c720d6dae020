"""The functional core: what a job does next, given what is seen."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from remote_trainer import effects as fx
from remote_trainer.effects import Severity
from remote_trainer.errors import InvariantBroken
from remote_trainer.lifecycle import TRANSITIONS, Decision
from remote_trainer.lifecycle.rules import move
from remote_trainer.model import (
    HostFacts,
    Phase,
    Reason,
    StepState,
    Verdict,
)
from tests.unit.life import NOW, OFFER, RENTED, Life, a_job, kinds

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
    assert kinds(life.see(instances=(), instances_at=life.now)) == {"ChooseOffer"}
    assert life.job.attempts[0].refused == ("o1",)
    assert "Create" in kinds(life.see(offer=replace(OFFER, id="o2")))


def test_nothing_is_asked_again_while_the_request_is_under_way() -> None:
    """A request that has not been answered yet may still take effect."""
    life = Life(a_job(), RENTED)
    life.tick()
    life.see(offer=OFFER)
    life.later(60)
    assert "Create" not in kinds(life.see(instances=(), instances_at=life.now))


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
