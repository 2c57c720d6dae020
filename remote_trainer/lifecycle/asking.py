"""PROVISIONING as long as no instance is known: choose, ask once, or find out what was asked for.

Rules for editing: as in the package's docstring. ``Create`` goes out only with the decision that saves ``requested_at``, and nothing is
asked for again before it is certain that the last requests made nothing: by their answers, or by listing and records.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from remote_trainer import policy as choices
from remote_trainer.effects import ChooseOffer, Create, Severity
from remote_trainer.lifecycle.machines import candidates, doubtful, look, made_nothing, shows_everything, trace, traced
from remote_trainer.lifecycle.rules import Decision, Moment, again, current, given_up_at, put, release, soon, wish
from remote_trainer.model import Job, Reason, Strategy, Verdict

_LOOK_S = 5.0


def asking(job: Job, moment: Moment) -> Decision:
    """Get hold of an instance."""
    attempt, seen = current(job), moment.seen
    if found := candidates(job, moment):
        listed = any(one.id == found[0].id for one in (*(seen.instances or ()), *seen.created.values()))
        return again(put(job, replace(attempt, instance=found[0], traced=not listed)))
    if attempt.requested_at is None:
        return _choosing(job, moment)
    if moment.abilities.borrowed:
        once_more = Create(attempt.label)  # it is free
        return wish(job, moment, once_more, wake_at=soon(job, moment, provisioned_by(job, moment)))
    if made_nothing(job, moment):
        return _in_vain(job, moment)
    if seen.instances is not None and shows_everything(moment):
        if not doubtful(job, moment) or traced(job, moment):
            return _in_vain(job, moment)
        return wish(job, moment, trace(job, moment), look(job, moment, moment.policy.instance_poll_s), wake_at=_soon(moment))
    return wish(job, moment, look(job, moment, _LOOK_S), wake_at=_soon(moment))


def _soon(moment: Moment) -> datetime:
    return moment.now + timedelta(seconds=_LOOK_S)


def _choosing(job: Job, moment: Moment) -> Decision:
    """Nothing is asked for: see what there is, and save what is asked for together with the fact that it is."""
    attempt, seen = current(job), moment.seen
    failed = seen.troubles.get(Create)
    if failed is not None and moment.now < failed.retry_at:
        held_back = Create(attempt.label)
        return wish(job, moment, held_back, wake_at=soon(job, moment, provisioned_by(job, moment)))
    if seen.offer is None:
        return _scarce(job, moment) or wish(job, moment, ChooseOffer(), wake_at=soon(job, moment, provisioned_by(job, moment)))
    asked = replace(attempt, offer=seen.offer, rivals=seen.rivals, place=seen.place, requested_at=moment.now)
    creates = tuple(Create(attempt.label, number) for number in range(1 + len(seen.rivals)))
    return Decision(job=put(job, asked), effects=creates)


def _scarce(job: Job, moment: Moment) -> Decision | None:
    """There was no machine: a job that has not had one yet is told so, unless it wants to wait; others look again."""
    trouble = moment.seen.troubles.get(ChooseOffer)
    if trouble is None or trouble.reason is not Reason.NO_CAPACITY:
        return None
    queues = job.provision.strategy is Strategy.QUEUE
    if not queues and len(job.attempts) == 1 and not current(job).refused:
        return release(job, moment, Verdict.FAILED, trouble.reason, trouble.message)
    waiting = wish(job, moment, ChooseOffer(), wake_at=soon(job, moment, provisioned_by(job, moment)))
    return replace(waiting, job=replace(waiting.job, note=f"waits for a machine: {trouble.message}"))


def _in_vain(job: Job, moment: Moment) -> Decision:
    """What was asked for made nothing: ask for something else, so often."""
    attempt, seen = current(job), moment.seen
    asked = [offer.id for offer in (attempt.offer, *attempt.rivals) if offer is not None]
    refused = [offer_id for number, offer_id in enumerate(asked) if number not in seen.unsent]
    job = put(job, replace(attempt, offer=None, rivals=(), requested_at=None, refused=(*attempt.refused, *refused)))
    if refused and choices.fruitless(job) > moment.policy.max_provisioning:
        failed = seen.troubles.get(Create)
        words = failed.message if failed else "nothing came of the request"
        return release(job, moment, Verdict.LOST, Reason.PROVISIONING_FAILED, words)
    return again(job)


def provisioned_by(job: Job, moment: Moment) -> datetime | None:
    """Return when the attempt gives up: counted from the request or, before it, from when it was known that there is no machine.

    Nothing is rented before the request: whatever else is waited for then (money, a turn, a provider that does not answer) has time
    until the job's limits.
    """
    attempt = current(job)
    if attempt.requested_at is not None:
        return given_up_at(job, moment, attempt.requested_at, moment.policy.provision_timeout_s)
    trouble = moment.seen.troubles.get(ChooseOffer)
    scarce = trouble is not None and trouble.reason is Reason.NO_CAPACITY and moment.seen.offer is None
    if job.provision.strategy is Strategy.QUEUE or trouble is None or not scarce:
        return None
    return given_up_at(job, moment, trouble.alike_since or trouble.at, moment.policy.provision_timeout_s)


def cannot_ask(moment: Moment) -> str:
    """Return why no request to rent can ever succeed, or an empty string: an offer that is refused is not the last one."""
    trouble = moment.seen.troubles.get(Create)
    return trouble.message if trouble is not None and trouble.severity is Severity.FATAL else ""
