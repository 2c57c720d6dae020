"""The functional core with several machines rented at once: which is kept, which is given back, and what counts as doubt."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from remote_trainer import effects as fx
from remote_trainer.effects import Severity
from remote_trainer.lifecycle import Decision
from remote_trainer.model import HostFacts, Instance, InstanceState, Phase, Reason
from remote_trainer.policy import Policy
from tests.unit.life import OFFER, RENTED, Life, a_job, kinds

LAG_S = RENTED.visibility_lag_s + Policy().lag_margin_s
RIVAL = replace(OFFER, id="o2", machine="m2")


def racing() -> Life:
    """Two requests are under way."""
    life = Life(a_job(), RENTED)
    life.tick()
    sent = [effect for effect in life.see(offer=OFFER, rivals=(RIVAL,)).effects if isinstance(effect, fx.Create)]
    assert [(effect.label, effect.number) for effect in sent] == [("rt-dep-j1-a1", 0), ("rt-dep-j1-a1", 1)]
    return life


def of(life: Life, number: int, state: InstanceState) -> Instance:
    return replace(life.instance(), id=f"i{number}", state=state)


S, R, B = InstanceState.STARTING, InstanceState.READY, InstanceState.BROKEN


def answered(life: Life) -> None:
    life.seen = replace(life.seen, creating=frozenset(), answered_at=life.now, created={0: of(life, 0, S), 1: of(life, 1, S)})
    life.tick()


def shown(life: Life, *states: InstanceState) -> Decision:
    found = tuple(of(life, number, state) for number, state in enumerate(states))
    return life.see(instances=found, instances_at=life.now)


def destroyed(decision: Decision) -> list[str]:
    return [effect.instance_id for effect in decision.effects if isinstance(effect, fx.Destroy)]


def test_the_first_that_is_ready_is_kept_and_the_others_are_given_back_once_it_serves() -> None:
    """Until its host is bootstrapped the rivals are kept; then they cost no more than they must."""
    life = racing()
    answered(life)
    decision = shown(life, S, R)
    assert life.job.attempts[0].instance is not None and life.job.attempts[0].instance.id == "i1"
    assert "PrepareHost" in kinds(decision) and destroyed(decision) == []
    life.see(host=HostFacts(incarnation="inc", boot="b"))
    attempt = life.job.attempts[0]
    assert life.job.phase is Phase.TRANSFERRING
    assert attempt.offer is not None and (attempt.offer.id, [one.id for one in attempt.rivals]) == ("o2", ["o1"])
    assert destroyed(life.see(resume_known=True)) == ["i0"]
    life.later(LAG_S)
    assert life.job.attempts[0].rivals_gone_at is None
    life.see(instances=(of(life, 1, R),), instances_at=life.now)
    assert life.job.attempts[0].rivals_gone_at == life.now


def test_a_rival_takes_the_place_of_a_machine_that_cannot_serve() -> None:
    """The attempt goes on; what was dropped is ended and never taken again."""
    life = racing()
    answered(life)
    shown(life, R, R)
    decision = life.trouble(fx.PrepareHost, Severity.UNSUITABLE, Reason.HOST_UNSUITABLE)
    attempt = life.job.attempts[0]
    assert attempt.instance is not None and (attempt.instance.id, attempt.dropped) == ("i1", ("i0",))
    assert destroyed(decision) == ["i0"] and "PrepareHost" in kinds(decision)
    life.trouble(fx.PrepareHost, Severity.UNSUITABLE, Reason.HOST_UNSUITABLE)
    assert (life.job.phase, life.job.attempts[0].reason) == (Phase.RELEASING, Reason.HOST_UNSUITABLE)


def test_a_rival_that_is_not_ready_yet_is_better_than_none() -> None:
    """The one that broke is dropped, and the other waited for."""
    life = racing()
    answered(life)
    shown(life, B, S)
    attempt = life.job.attempts[0]
    assert attempt.instance is not None and (attempt.instance.id, life.job.phase) == ("i1", Phase.PROVISIONING)


def test_one_refused_rival_does_not_matter() -> None:
    """The other request goes on; both refused, other offers are asked."""
    life = racing()
    life.seen = replace(life.seen, refused=frozenset({1}), creating=frozenset({0}))
    life.trouble(fx.Create, Severity.UNSUITABLE)
    assert life.job.attempts[0].requested_at is not None
    life.seen = replace(life.seen, refused=frozenset({0, 1}), creating=frozenset())
    life.tick()
    assert (life.job.attempts[0].requested_at, life.job.attempts[0].refused) == (None, ("o1", "o2"))


def test_a_race_in_doubt_asks_for_nothing() -> None:
    """One refused and one unsure: another worker waits for the listing before anything is asked for again."""
    life = racing()
    life.seen = replace(life.seen, refused=frozenset({1}), creating=frozenset(), answered_at=life.now)
    assert kinds(life.tick()) == {"FindInstance"}
    life.restart()
    life.later(LAG_S - 1)
    assert kinds(life.see(instances=(), instances_at=life.now)) == set()
    life.later(6)
    assert kinds(life.see(instances=(), instances_at=life.now)) == {"ChooseOffer"}


def test_every_racing_machine_is_guarded() -> None:
    """Should all workers die now, the provider ends each of them."""
    life = racing()
    life.abilities = replace(RENTED, scheduler=True)
    answered(life)
    guards = [effect for effect in life.tick().effects if isinstance(effect, fx.Guard)]
    assert {guard.instance_id for guard in guards} == {"i0", "i1"}
    assert guards[0].until - life.now > timedelta(hours=24)


def test_all_racing_machines_are_given_back_when_the_job_ends() -> None:
    """Also the one that answers late."""
    life = racing()
    life.seen = replace(life.seen, creating=frozenset({1}), created={0: of(life, 0, S)})
    life.cancel()
    assert "Destroy" in kinds(life.tick())
    answered(life)
    assert destroyed(life.tick()) == ["i0", "i1"]
    life.later(LAG_S)
    life.see(instances=(), instances_at=life.now)
    assert life.job.phase is Phase.CANCELLED


def test_another_worker_finds_a_race_by_its_label() -> None:
    """What was answered to the dead one is listed."""
    life = racing()
    answered(life)
    life.restart()
    assert "PrepareHost" in kinds(shown(life, S, R))
    assert life.job.attempts[0].instance is not None and life.job.attempts[0].instance.id == "i1"


def test_a_rival_that_only_the_records_know_is_given_back_too() -> None:
    """The listing shows ours alone, and the records one more: it is ended before the rivals count as gone."""
    life = racing()
    life.abilities = replace(RENTED, records=True)
    answered(life)
    shown(life, R, S)
    life.see(host=HostFacts(incarnation="inc", boot="b"), resume_known=True)
    life.later(LAG_S)
    assert "Trace" in kinds(shown(life, R))
    decision = life.see(traced=(of(life, 0, R), of(life, 1, S)), traced_at=life.now)
    assert destroyed(decision) == ["i1"] and life.job.attempts[0].rivals_gone_at is None
    assert "Trace" in kinds(life.later(15))
    life.see(traced=(of(life, 0, R),), traced_at=life.now)
    assert life.job.attempts[0].rivals_gone_at == life.now
