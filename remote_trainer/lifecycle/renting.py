"""The phases before anything runs: QUEUED, PROVISIONING once an instance is known, TRANSFERRING.

Rules for editing: as in the package's docstring.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from remote_trainer.effects import ChooseOffer, FindCheckpoint, Guard, PrepareHost, Seen, ShipInputs
from remote_trainer.lifecycle.asking import asking, cannot_ask, provisioned_by
from remote_trainer.lifecycle.machines import another, guards, look, lost, noted, ours, surplus, upkeep
from remote_trainer.lifecycle.rules import (
    Decision,
    Moment,
    again,
    current,
    given_up_at,
    hopeless,
    move,
    new_attempt,
    overrun,
    put,
    release,
    soon,
    verdict_of,
    wish,
)
from remote_trainer.model import Attempt, HostFacts, Instance, InstanceState, Job, Phase, Reason, StepRun, Verdict

P = Phase

#: For so long a ready machine may not let us in while a rival of it is ready too.
_RIVAL_S = 60.0


def queued(job: Job, moment: Moment) -> Decision:
    """Begin the first attempt, or end at once."""
    if job.cancel_requested_at is None:
        return new_attempt(job, moment)
    done = move(job, P.CANCELLED, moment.now)
    return Decision(
        job=replace(
            done,
            verdict=Verdict.CANCELLED,
            reason=Reason.CANCELLED_BY_USER,
            message="cancelled before anything was started",
            finished_at=moment.now,
        )
    )


def provisioning(job: Job, moment: Moment) -> Decision:
    """Get a machine and make sure that it can serve."""
    attempt, seen = current(job), moment.seen
    if job.cancel_requested_at is not None:
        return release(job, moment, Verdict.CANCELLED, Reason.CANCELLED_BY_USER, "cancelled while provisioning")
    if over := overrun(job, moment):
        return release(job, moment, Verdict.FAILED, *over)
    if words := cannot_ask(moment):
        return release(job, moment, Verdict.FAILED, Reason.PROVISIONING_FAILED, words)
    if trouble := hopeless(moment, ChooseOffer, Guard, PrepareHost):
        return _next_machine(job, moment, verdict_of(trouble), trouble.reason, trouble.message)
    ends = provisioned_by(job, moment)
    if ends is not None and moment.now >= ends:
        return _too_late(job, moment)
    if attempt.instance is None:
        return asking(job, moment)
    if attempt.instance.state is not InstanceState.READY:
        return _booting(job, moment, attempt.instance)
    if attempt.ready_at is None:
        return again(put(job, replace(attempt, ready_at=moment.now)))
    if seen.host is None or (guards(job, moment) and attempt.instance.id not in seen.guarded):
        return _preparing(job, moment)
    return again(move(put(job, _taken(attempt, seen, seen.host)), P.TRANSFERRING, moment.now))


def _too_late(job: Job, moment: Moment) -> Decision:
    trouble = moment.seen.troubles.get(ChooseOffer)
    scarce = current(job).requested_at is None and trouble is not None and trouble.reason is Reason.NO_CAPACITY
    message = f"no usable machine within {moment.policy.provision_timeout_s:g} s" + (f": {job.note}" if job.note else "")
    return release(job, moment, Verdict.LOST, Reason.NO_CAPACITY if scarce else Reason.PROVISIONING_FAILED, message)


def _booting(job: Job, moment: Moment, instance: Instance) -> Decision:
    """The instance is there and not ready yet: keep looking; the first rival that is ready takes its place."""
    attempt, now_seen, rival = current(job), ours(job, moment), another(job, moment)
    if now_seen is not None and now_seen.state is not instance.state:
        return again(put(job, replace(attempt, instance=replace(now_seen, host_key=instance.host_key))))
    if rival is not None and rival.state is InstanceState.READY:
        return again(put(job, replace(attempt, instance=rival)))
    why = lost(job, moment)
    if why is not None or instance.state in (InstanceState.BROKEN, InstanceState.STOPPED):
        reason = Reason.EVICTED if why is not None and why[0] is Reason.EVICTED else Reason.PROVISIONING_FAILED
        words = instance.message or (why[1] if why is not None else "the provider stopped it")
        return _next_machine(job, moment, Verdict.LOST, reason, f"instance {instance.id} will not become ready: {words}")
    poll_s = moment.policy.boot_poll_s
    wishes = (*guards(job, moment), look(job, moment, poll_s), *surplus(job, moment))
    return wish(job, moment, *wishes, wake_at=moment.now + timedelta(seconds=poll_s))


def _preparing(job: Job, moment: Moment) -> Decision:
    """An address is known: make sure that somebody answers there, and can serve."""
    attempt, seen = current(job), moment.seen
    if why := lost(job, moment):
        return _next_machine(job, moment, Verdict.LOST, *why)
    trouble, rival = seen.troubles.get(PrepareHost), another(job, moment)
    if (
        trouble is not None
        and moment.after(trouble.alike_since, _RIVAL_S)
        and rival is not None
        and rival.state is InstanceState.READY
    ):
        return _next_machine(job, moment, Verdict.LOST, Reason.PROVISIONING_FAILED, trouble.message)
    prepare = PrepareHost(attempt.label) if seen.host is None else None
    closed = trouble is not None and not moment.abilities.borrowed  # its address may still change
    poll_s = moment.policy.boot_poll_s if closed else moment.policy.instance_poll_s
    next_look = moment.now + timedelta(seconds=poll_s) if closed else None
    wishes = (*guards(job, moment), prepare, look(job, moment, poll_s), *surplus(job, moment))
    return wish(job, moment, *wishes, wake_at=soon(job, moment, next_look, provisioned_by(job, moment)))


def _next_machine(job: Job, moment: Moment, verdict: Verdict, reason: Reason, message: str) -> Decision:
    """Our instance cannot serve: take one of its rivals, or end the attempt."""
    attempt, rival = current(job), another(job, moment)
    if verdict is not Verdict.LOST or attempt.instance is None or rival is None:
        return release(job, moment, verdict, reason, message)
    dropped = (*attempt.dropped, attempt.instance.id)
    return again(put(job, replace(attempt, instance=rival, dropped=dropped)))


def _taken(attempt: Attempt, seen: Seen, host: HostFacts) -> Attempt:
    """Return the attempt with the machine that proved good: its key is pinned, its price is the attempt's."""
    mine = attempt.instance
    assert mine is not None
    number = next((number for number, made in seen.created.items() if made.id == mine.id), 0)
    offers = [offer for offer in (attempt.offer, *attempt.rivals) if offer is not None]
    kept = offers.pop(number) if number < len(offers) else None
    pinned = replace(mine, host_key=mine.host_key or host.host_key)
    return replace(attempt, facts=host, instance=pinned, offer=kept, rivals=tuple(offers))


def transferring(job: Job, moment: Moment) -> Decision:
    """Bring the inputs and the checkpoint to resume from to the host."""
    attempt, seen = current(job), moment.seen
    if job.cancel_requested_at is not None:
        return release(job, moment, Verdict.CANCELLED, Reason.CANCELLED_BY_USER, "cancelled while transferring")
    if over := overrun(job, moment):
        return release(job, moment, Verdict.FAILED, *over)
    if why := lost(job, moment):
        return release(job, moment, Verdict.LOST, *why)
    if changed := noted(job, moment):
        return again(changed)
    if trouble := hopeless(moment, ShipInputs):
        return release(job, moment, verdict_of(trouble), trouble.reason, trouble.message)
    ends = given_up_at(job, moment, job.since, moment.policy.transfer_timeout_s)
    if ends is not None and moment.now >= ends:
        message = f"inputs not on the host within {moment.policy.transfer_timeout_s:g} s" + (f": {job.note}" if job.note else "")
        return release(job, moment, Verdict.LOST, Reason.TRANSFER_FAILED, message)
    if not seen.resume_known:
        return wish(job, moment, FindCheckpoint(), *upkeep(job, moment), wake_at=soon(job, moment, ends))
    if not seen.shipped:
        ship = ShipInputs(attempt.label, seen.resume)
        return wish(job, moment, ship, *upkeep(job, moment), wake_at=soon(job, moment, ends))
    first = StepRun(name=job.plan.steps[0].name, number=1, started_at=moment.now)
    running = replace(attempt, restored=seen.resume, executing_at=moment.now, steps=(first,))
    return again(move(put(job, running), P.EXECUTING, moment.now))
