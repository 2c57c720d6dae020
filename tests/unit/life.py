"""A job's life, decided fact by fact: what the tests of the functional core share."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from remote_trainer import effects as fx
from remote_trainer.effects import Collected, Effect, Seen, Severity, Trouble
from remote_trainer.lifecycle import TRANSITIONS, Decision, Moment, decide, forget, listed
from remote_trainer.model import (
    HostFacts,
    Instance,
    Job,
    JobId,
    Limits,
    Manifest,
    Offer,
    Plan,
    PlannedStep,
    Reason,
    Retries,
    StepState,
)
from remote_trainer.policy import Policy
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
                self.seen = replace(self.seen, creating=frozenset(effect.number for effect in creates))
            sent += creates
        raise AssertionError("the job changes without end")

    def see(self, **facts: object) -> Decision:
        if "created" in facts:
            facts |= {"created": {0: facts["created"]}, "creating": frozenset(), "answered_at": self.now}
        if facts.get("instances") == ():
            self.accept()
        if "instances" in facts:
            self.seen = listed(self.seen, self.job, facts.pop("instances"), facts.pop("instances_at"))  # type: ignore[arg-type]
        self.seen = replace(self.seen, **facts)  # type: ignore[arg-type]
        return self.tick()

    def accept(self) -> None:
        """The provider has agreed to end what we asked it to."""
        asked = (effect.instance_id for effect in self.tick().effects if isinstance(effect, fx.Destroy))
        self.seen = replace(self.seen, destroyed={**self.seen.destroyed, **dict.fromkeys(asked, self.now)})

    def missing(self) -> Decision:
        """Listings lack our instance for long enough to be believed."""
        self.see(instances=(), instances_at=self.now)
        self.later(Policy().gone_confirm_s)
        return self.see(instances=(), instances_at=self.now)

    def unsure(self) -> Decision:
        """The request ends without an answer."""
        return self.see(creating=frozenset(), answered_at=self.now)

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
