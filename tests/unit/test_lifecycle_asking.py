"""The functional core while it asks for a machine: what is refused, what is unsure, what counts as an attempt, what is waited for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from remote_trainer import effects as fx
from remote_trainer.effects import Severity
from remote_trainer.lifecycle import Decision
from remote_trainer.model import (
    InstanceState,
    Job,
    Limits,
    Phase,
    Place,
    Provision,
    Reason,
    StepState,
    Strategy,
    Verdict,
)
from remote_trainer.policy import Policy
from remote_trainer.ports import Abilities
from tests.unit.life import OFFER, RENTED, Life, a_job, kinds

RECORDS = replace(RENTED, records=True)
LAG_S = RENTED.visibility_lag_s + Policy().lag_margin_s


def asked(life: Life) -> Life:
    """Get as far as the request."""
    life.tick()
    assert "Create" in kinds(life.see(offer=OFFER))
    return life


def refuse(life: Life, severity: Severity = Severity.UNSUITABLE) -> Decision:
    """The request is answered: it made nothing."""
    what = {"refused": frozenset({0})} if severity is Severity.UNSUITABLE else {"unsent": frozenset({0})}
    life.seen = replace(life.seen, creating=frozenset(), answered_at=life.now, **what)
    return life.trouble(fx.Create, severity, Reason.PROVISIONING_FAILED)


def lose_before_a_machine(life: Life) -> Decision:
    """The instance never comes up, and is given back."""
    life.see(created=replace(life.instance(), state=InstanceState.STARTING))
    life.see(instances=(replace(life.instance(), state=InstanceState.BROKEN),), instances_at=life.now)
    life.later(LAG_S)
    return life.see(instances=(), instances_at=life.now)


# --------------------------------------------------------------------------------------------------------------- refused


def test_after_a_refusal_another_offer_is_asked_in_the_same_attempt() -> None:
    """A definite no made nothing: no listing is waited for, no attempt used up, and that offer is not asked again."""
    life = asked(Life(a_job(), RENTED))
    assert refuse(life).effects == ()
    attempt = life.job.attempts[0]
    assert (attempt.refused, attempt.requested_at, attempt.offer) == (("o1",), None, None)
    assert kinds(life.later(10)) == {"ChooseOffer"}
    assert kinds(life.see(offer=replace(OFFER, id="o2"))) == {"Create", "FindInstance"}
    assert len(life.job.attempts) == 1


def test_a_request_that_was_not_sent_leaves_its_offer_on_the_list() -> None:
    """Limited or late, it made nothing, and nothing is known against the offer."""
    life = asked(Life(a_job(), RENTED))
    refuse(life, Severity.RETRY)
    assert (life.job.attempts[0].requested_at, life.job.attempts[0].refused) == (None, ())
    assert kinds(life.later(10)) == {"ChooseOffer"}


def test_refusals_are_bounded() -> None:
    """Twelve offers in a row that nobody lets us have end the job, with the last words."""
    life = Life(a_job(), RENTED)
    life.tick()
    for number in range(Policy().max_provisioning):
        life.later(10)
        life.see(offer=replace(OFFER, id=f"o{number}"))
        refuse(life)
    assert (life.job.phase, life.job.reason) == (Phase.FAILED, Reason.PROVISIONING_FAILED)
    assert "what happened" in life.job.message and len(life.job.attempts) == 1


def test_a_setting_that_is_missing_ends_the_job_at_once() -> None:
    """No offer can be had without a key."""
    life = asked(Life(a_job(), RENTED))
    life.seen = replace(life.seen, creating=frozenset(), answered_at=life.now)
    life.trouble(fx.Create, Severity.FATAL)
    life.later(LAG_S)
    life.missing()
    assert life.job.phase is Phase.FAILED


def test_a_cancelled_job_whose_request_was_not_sent_ends_at_once() -> None:
    """Nothing was made: there is nothing to wait for."""
    life = asked(Life(a_job(), RENTED))
    life.cancel()
    assert life.job.phase is Phase.RELEASING
    refuse(life, Severity.RETRY)
    assert life.job.phase is Phase.CANCELLED


# ---------------------------------------------------------------------------------------------------------------- unsure


def test_an_unsure_request_is_looked_up_in_the_records_before_it_counts_as_nothing() -> None:
    """The listing shows nothing for long enough: then the provider's own records are asked, and only then another offer."""
    life = asked(Life(a_job(), RECORDS))
    life.unsure()
    life.later(LAG_S)
    assert kinds(life.see(instances=(), instances_at=life.now)) == {"Trace"}
    assert kinds(life.see(traced=(), traced_at=life.now)) == {"ChooseOffer"}
    assert life.job.attempts[0].refused == ("o1",)


def test_what_the_records_know_is_adopted() -> None:
    """An instance that no listing shows is ours all the same."""
    life = asked(Life(a_job(), RECORDS))
    life.unsure()
    life.later(LAG_S)
    life.see(instances=(), instances_at=life.now)
    life.see(traced=(replace(life.instance(), state=InstanceState.STARTING),), traced_at=life.now)
    attempt = life.job.attempts[0]
    assert attempt.instance is not None and (attempt.instance.id, attempt.traced) == ("i1", True)


def test_what_only_the_records_know_is_gone_when_they_say_so() -> None:
    """It was never listed, so that it is not listed proves nothing: it is destroyed until the records lack it."""
    life = asked(Life(a_job(), RECORDS))
    life.unsure()
    life.later(LAG_S)
    life.see(instances=(), instances_at=life.now)
    life.see(traced=(life.instance(),), traced_at=life.now)
    life.cancel()
    assert life.job.phase is Phase.RELEASING
    assert "Destroy" in kinds(life.see(instances=(), instances_at=life.now))
    life.later(LAG_S)
    assert {"Destroy", "Trace"} <= kinds(life.see(instances=(), instances_at=life.now))
    life.see(traced=(life.instance(),), traced_at=life.now)
    assert life.job.phase is Phase.RELEASING
    life.see(traced=(), traced_at=life.now)
    assert life.job.phase is Phase.CANCELLED


def test_an_old_look_at_the_records_proves_nothing() -> None:
    """They lag, too: they count from when a listing does."""
    life = asked(Life(a_job(), RECORDS))
    life.unsure()
    life.see(traced=(), traced_at=life.now)
    life.later(LAG_S)
    assert "Trace" in kinds(life.see(instances=(), instances_at=life.now))


def test_where_the_records_cannot_be_read_the_listing_has_to_do() -> None:
    """A key without the right to see them does not keep the job for ever; a disturbance is waited out."""
    for severity, goes_on in ((Severity.RETRY, False), (Severity.FATAL, True)):
        life = asked(Life(a_job(), RECORDS))
        life.unsure()
        life.later(LAG_S)
        life.see(instances=(), instances_at=life.now)
        life.trouble(fx.Trace, severity)
        assert (life.job.attempts[0].requested_at is None) == goes_on


def test_an_answered_request_needs_no_records() -> None:
    """Who knows its instance asks the listing alone whether it is gone."""
    life = asked(Life(a_job(), RECORDS))
    life.see(created=life.instance())
    life.cancel()
    life.later(LAG_S)
    life.see(instances=(), instances_at=life.now)
    assert life.job.phase is Phase.CANCELLED


# -------------------------------------------------------------------------------------------------------------- attempts


def test_machines_that_never_serve_use_up_no_attempts() -> None:
    """They are counted apart, in a row, and end the job as what it was: no usable machine."""
    life = Life(a_job(limits=Limits(max_attempts=1)), RENTED)
    life.tick()
    for _ in range(Policy().max_provisioning):
        assert life.job.phase is Phase.PROVISIONING
        life.see(offer=OFFER)
        lose_before_a_machine(life)
    assert (life.job.phase, life.job.reason) == (Phase.FAILED, Reason.PROVISIONING_FAILED)
    assert "12 tries in a row" in life.job.message and len(life.job.attempts) == 12


def test_a_machine_that_served_ends_the_row() -> None:
    """The count begins anew after each attempt that got one, and those are what ``max_attempts`` bounds."""
    life = Life(a_job(limits=Limits(max_attempts=2)), RENTED)
    life.tick()
    for _ in range(2):
        for _ in range(Policy().max_provisioning - 1):
            life.see(offer=OFFER)
            lose_before_a_machine(life)
        life.to_executing()
        life.step("s1.1", StepState.LOST, why="reboot")
        life.collected()
        life.later(LAG_S)
        life.see(instances=(), instances_at=life.now)
    assert (life.job.phase, life.job.reason) == (Phase.FAILED, Reason.ATTEMPTS_EXHAUSTED)
    assert "attempt 2 of 2" in life.job.message and len(life.job.attempts) == 24


# -------------------------------------------------------------------------------------------------------------- capacity


def queueing(job: Job) -> Job:
    return replace(job, provision=Provision(strategy=Strategy.QUEUE))


def test_a_job_is_told_at_once_that_there_is_no_machine_for_it() -> None:
    """Before it ever had one, waiting is not what was asked for."""
    life = Life(a_job(), RENTED)
    life.tick()
    life.trouble(fx.ChooseOffer, Severity.RETRY, Reason.NO_CAPACITY)
    assert (life.job.phase, life.job.reason) == (Phase.FAILED, Reason.NO_CAPACITY)


def test_a_queueing_job_waits_for_a_machine_until_its_limits() -> None:
    """It says what it waits for, and its patience with a machine begins with the machine."""
    life = Life(queueing(a_job(limits=Limits(max_hours=5))), RENTED)
    life.tick()
    assert life.trouble(fx.ChooseOffer, Severity.RETRY, Reason.NO_CAPACITY).effects == ()
    assert life.job.note == "waits for a machine: what happened"
    assert kinds(life.later(4 * 3600)) == {"ChooseOffer"}
    life.see(offer=OFFER)
    life.later(600)
    assert life.job.phase is Phase.PROVISIONING
    life.later(3600)
    assert life.job.attempts[0].reason is Reason.TIME_LIMIT


def test_a_job_that_has_had_a_machine_looks_for_another_one_for_a_while() -> None:
    """No capacity at the moment is no reason to throw its work away; half an hour of it ends the attempt, not the job."""
    life = Life(a_job(), RENTED)
    life.to_executing()
    life.missing()
    life.later(LAG_S)
    life.missing()
    life.see(instances=(), instances_at=life.now)
    assert len(life.job.attempts) == 2
    life.trouble(fx.ChooseOffer, Severity.RETRY, Reason.NO_CAPACITY)
    assert kinds(life.later(60)) == {"ChooseOffer"}
    life.later(1800)
    assert len(life.job.attempts) == 3
    assert (life.job.attempts[1].verdict, life.job.attempts[1].reason) == (Verdict.LOST, Reason.NO_CAPACITY)


# ---------------------------------------------------------------------------------------------------------------- places


def test_the_place_is_saved_with_the_request() -> None:
    """Whoever takes over knows whom to ask what became of it."""
    life = Life(replace(a_job(), fallbacks=(Place(driver="other"),)), RENTED)
    life.tick()
    life.see(offer=OFFER, place=1)
    assert (life.job.attempts[0].place, life.job.place.driver) == (1, "other")


@pytest.mark.parametrize("others", [(), (Place(driver="other"),)])
def test_a_borrowed_machine_is_waited_for_only_without_another_place(others: tuple[Place, ...]) -> None:
    """With one, silence for half an hour is reason enough to go there."""
    life = Life(replace(a_job(), fallbacks=others), Abilities(borrowed=True))
    life.tick()
    life.see(offer=OFFER)
    life.see(created=life.instance())
    life.later(Policy().provision_timeout_s + 1)
    assert len(life.job.attempts) == 1 + len(others)


def test_waiting_for_anything_but_a_machine_uses_up_no_patience() -> None:
    """Money, a turn, a provider that does not answer: nothing is rented meanwhile, and what comes then is rented."""
    life = Life(a_job(), RENTED)
    life.tick()
    life.trouble(fx.ChooseOffer, Severity.RETRY, Reason.INTERNAL)
    life.later(4 * 3600)
    life.restart()
    assert kinds(life.later(4 * 3600)) == {"ChooseOffer"}
    assert "Create" in kinds(life.see(offer=OFFER))
    assert (life.job.phase, len(life.job.attempts)) == (Phase.PROVISIONING, 1)
