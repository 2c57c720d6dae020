"""The functional core on spot machines: how an eviction is told from other losses, what follows, and when more is bid."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from remote_trainer import effects as fx
from remote_trainer.effects import Severity
from remote_trainer.model import InstanceState, Job, Limits, Phase, Provision, Reason, StepState, Verdict
from remote_trainer.policy import evictions
from tests.unit.life import OFFER, RENTED, Life, a_job, kinds

SPOT = replace(OFFER, spot=True, price_per_hour=Decimal("0.25"), disk_per_hour=Decimal("0.05"))  # our bid is 0.20
RENTS_SPOT = replace(RENTED, spot=True)


def running(job: Job | None = None) -> Life:
    """A step runs on a spot machine."""
    life = Life(job or a_job(), RENTS_SPOT)
    life.tick()
    life.see(offer=SPOT)
    life.to_executing()
    life.step("s1.1", StepState.RUNNING, drained=False)
    assert life.job.attempts[0].offer == SPOT
    return life


def stopped(life: Life, state: InstanceState = InstanceState.STOPPED) -> None:
    life.see(instances=(replace(life.instance(), state=state, message="outbid"),), instances_at=life.now)


def test_a_spot_machine_that_is_stopped_was_evicted() -> None:
    """Its disk is paid for until it is destroyed; then the job goes on elsewhere."""
    life = running()
    stopped(life)
    attempt = life.job.attempts[0]
    assert (life.job.phase, attempt.verdict, attempt.reason) == (Phase.RELEASING, Verdict.LOST, Reason.EVICTED)
    assert "outbid" in attempt.message and "Destroy" in kinds(life.tick())
    life.later(60)
    life.see(instances=(), instances_at=life.now)
    assert (len(life.job.attempts), evictions(life.job)) == (2, 1)


def test_an_eviction_before_the_start_is_one_too() -> None:
    """It got no machine, and counts towards renting on demand."""
    life = Life(a_job(), RENTS_SPOT)
    life.tick()
    life.see(offer=SPOT)
    life.see(created=replace(life.instance(), state=InstanceState.STARTING))
    stopped(life)
    assert life.job.attempts[0].reason is Reason.EVICTED


@pytest.mark.parametrize(("spot", "state"), [(False, InstanceState.STOPPED), (True, InstanceState.BROKEN)])
def test_what_else_is_lost_was_not_evicted(spot: bool, state: InstanceState) -> None:
    """Nobody outbids who rents on demand, and a broken machine is broken."""
    life = running()
    life.job = replace(life.job, attempts=(replace(life.job.attempts[0], offer=replace(SPOT, spot=spot)),))
    stopped(life, state)
    assert life.job.attempts[0].reason is Reason.INSTANCE_GONE


def test_a_success_whose_outputs_went_with_the_machine_was_evicted() -> None:
    """The steps exited 0, and what they made is gone: the next attempt makes it again."""
    life = running()
    life.step("s1.1", StepState.EXITED, 0)
    assert life.job.phase is Phase.FETCHING
    stopped(life)
    assert (life.job.attempts[0].verdict, life.job.attempts[0].reason) == (Verdict.LOST, Reason.EVICTED)


# ------------------------------------------------------------------------------------------------------------------ bids


def raising(life: Life, least: str) -> list[fx.Bid]:
    """Let the listing tell what others would have to bid."""
    there = replace(life.instance(), min_bid=Decimal(least))
    return [effect for effect in life.see(instances=(there,), instances_at=life.now).effects if isinstance(effect, fx.Bid)]


def willing(limits: Limits = Limits()) -> Job:
    return replace(a_job(limits=limits), provision=Provision(spot=True, raise_bid=True))


def test_more_is_bid_before_the_machine_is_lost() -> None:
    """A quarter more than what others would pay, saved as the price of the attempt before it is sent."""
    life = running(willing())
    assert raising(life, "0.19") == []
    assert [effect.price for effect in raising(life, "0.24")] == [Decimal("0.3000")]
    offer = life.job.attempts[0].offer
    assert offer is not None and (offer.price_per_hour, life.job.attempts[0].raised_at) == (Decimal("0.3500"), life.now)
    assert "Bid" not in kinds(life.see(bid=Decimal("0.30")))


def test_a_bid_is_not_raised_unasked_nor_beyond_the_caps() -> None:
    """The job's cost cap is a cap on the hour too; a bid that would not win is not made."""
    assert raising(running(), "0.24") == []
    life = running(willing(Limits(max_cost=Decimal("0.32"))))
    assert [effect.price for effect in raising(life, "0.24")] == [Decimal("0.27")]
    assert raising(running(willing(Limits(max_cost=Decimal("0.28")))), "0.24") == []


def test_another_worker_bids_again_what_was_saved() -> None:
    """Whether the dead one got to send it is unknown, and to bid the same twice is harmless."""
    life = running(willing())
    raising(life, "0.24")
    life.restart()
    life.see(instances=(life.instance(),), instances_at=life.now)
    assert "Bid" in kinds(life.step("s1.1", StepState.RUNNING, drained=False))


def test_a_refused_bid_ends_nothing() -> None:
    """The training goes on until it is evicted, or is not."""
    life = running(willing())
    raising(life, "0.24")
    life.trouble(fx.Bid, Severity.RETRY)
    assert life.job.phase is Phase.EXECUTING
