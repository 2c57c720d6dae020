"""What is known of an attempt's machines, and what to do about them: look, return what is too much, bid.

Rules for editing: as in the package's docstring. A listing is believed only when it is complete and late enough; "not listed" alone says
little, and never that nothing was made.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from remote_trainer import policy as choices
from remote_trainer.effects import Bid, Destroy, Effect, FindInstance, Guard, Seen, Trace
from remote_trainer.lifecycle.rules import DOUBT_S, Moment, current, put
from remote_trainer.model import Attempt, Instance, InstanceState, Job, Phase, Reason

_TRACE_S = 15.0  # between two looks into the provider's records
_GUARD_MOVES = timedelta(hours=1)  # a limit that moves by less does not move the end that the provider was told
_USELESS = (InstanceState.STOPPED, InstanceState.BROKEN)


def listed(seen: Seen, job: Job, found: tuple[Instance, ...], asked_at: datetime) -> Seen:
    """Return what a complete listing of our label adds to what was seen."""
    mine = job.attempt.instance if job.attempt is not None else None
    lacks = mine is not None and all(one.id != mine.id for one in found)
    since = (seen.missing_since or asked_at) if lacks else None
    empty = None if found else (seen.empty_since or asked_at)
    return replace(seen, instances=found, instances_at=asked_at, missing_since=since, empty_since=empty)


def ours(job: Job, moment: Moment) -> Instance | None:
    """Return our instance as the newest listing shows it, None if that is unknown or it is not listed."""
    mine = current(job).instance
    return next((found for found in moment.seen.instances or () if mine is not None and found.id == mine.id), None)


def there(job: Job, moment: Moment) -> list[Instance]:
    """Return every instance that the attempt may have, as it was seen last; each once."""
    attempt, seen = current(job), moment.seen
    known = (*(seen.instances or ()), *filter(None, [attempt.instance]), *seen.created.values(), *(seen.traced or ()))
    found: dict[str, Instance] = {}
    for one in known:
        if one.label == attempt.label:
            found.setdefault(one.id, one)
    return list(found.values())


def candidates(job: Job, moment: Moment) -> list[Instance]:
    """Return the instances that may still serve the attempt, those that are ready first."""
    over = {*current(job).dropped, *moment.seen.destroyed}
    left = [one for one in there(job, moment) if one.id not in over]
    return sorted(left, key=lambda one: (one.state in _USELESS, one.state is not InstanceState.READY))


def another(job: Job, moment: Moment) -> Instance | None:
    """Return a rival of our instance that could take its place, the readiest."""
    mine = current(job).instance
    others = (one for one in candidates(job, moment) if mine is not None and one.id != mine.id and one.state not in _USELESS)
    return next(others, None)


def settled_at(moment: Moment) -> datetime:
    """Return from when on a listing shows whatever the attempt's requests may have made.

    Counted on this worker's clock alone, since another one's may go wrong: from the answer to its own request, or from when it took
    the job: a request of an earlier holder was sent before that, or is not sent any more (``Spec.left_s``).
    """
    lag_s = moment.abilities.visibility_lag_s + moment.policy.lag_margin_s
    return (moment.seen.answered_at or moment.seen.since) + timedelta(seconds=lag_s)


def shows_everything(moment: Moment) -> bool:
    """Is the last listing late enough to show whatever we have asked for, and nothing of it still on its way?"""
    seen_at = moment.seen.instances_at
    return seen_at is not None and seen_at >= settled_at(moment) and not moment.seen.creating


def made_nothing(job: Job, moment: Moment) -> bool:
    """Do the answers to all our requests say that they made nothing?"""
    numbers = set(range(1 + len(current(job).rivals)))
    return current(job).requested_at is not None and numbers <= moment.seen.refused | moment.seen.unsent


def doubtful(job: Job, moment: Moment) -> bool:
    """May there be an instance that no listing shows? Then the provider's records are asked, where it keeps any."""
    attempt = current(job)
    if not moment.abilities.records or made_nothing(job, moment):
        return False
    racing = bool(attempt.rivals) and attempt.rivals_gone_at is None
    # Only a listing tells that an instance is ready: one that never was may be known from a reply alone.
    return racing or attempt.traced or attempt.instance is None or attempt.ready_at is None


def traced(job: Job, moment: Moment) -> bool:
    """Have the records, looked at late enough, said what there is? True also where they cannot be read: the listing has to do."""
    trouble = moment.seen.troubles.get(Trace)
    if trouble is not None and not trouble.passes:
        return True
    return moment.seen.traced_at is not None and moment.seen.traced_at >= settled_at(moment)


def lost(job: Job, moment: Moment) -> tuple[Reason, str] | None:
    """Return why our instance counts as lost: complete listings, later than the lag allows, lack it for a while, or show it stopped.

    One listing alone is not believed to lack it: a provider that has a bad moment shows an empty one, and a destroy would follow.
    """
    attempt, seen = current(job), moment.seen
    if attempt.instance is None or attempt.instance.borrowed or seen.instances is None or seen.instances_at is None:
        return None
    found = ours(job, moment)
    if found is not None:
        return _stopped(attempt, found) if found.state in _USELESS else None
    missing_s = (seen.instances_at - (seen.missing_since or seen.instances_at)).total_seconds()
    if seen.instances_at >= settled_at(moment) and missing_s >= moment.policy.gone_confirm_s:
        return Reason.INSTANCE_GONE, "the provider says that the instance is gone"
    return None


def _stopped(attempt: Attempt, found: Instance) -> tuple[Reason, str]:
    words = f": {found.message}" if found.message else ""
    if found.state is InstanceState.STOPPED and attempt.offer is not None and attempt.offer.spot:
        return Reason.EVICTED, f"the provider took the spot instance {found.id} back{words}"
    return Reason.INSTANCE_GONE, f"the provider stopped the instance {found.id}{words}"


def look(job: Job, moment: Moment, every_s: float) -> FindInstance | None:
    """Return the wish to list our instances when the last listing is that old; none for borrowed machines."""
    seen_at = moment.seen.instances_at
    if moment.seen.missing_since is not None:
        every_s = min(every_s, DOUBT_S)
    if moment.abilities.borrowed or (seen_at is not None and 0 <= (moment.now - seen_at).total_seconds() < every_s):
        return None
    return FindInstance(current(job).label, seen_at)


def trace(job: Job, moment: Moment) -> Trace | None:
    """Return the wish to look into the provider's records, now and then."""
    seen_at = moment.seen.traced_at
    if seen_at is not None and 0 <= (moment.now - seen_at).total_seconds() < _TRACE_S:
        return None
    return Trace(current(job).label, seen_at)


def guards(job: Job, moment: Moment) -> list[Guard]:
    """Return the wish to have each instance ended by the provider, where it can: nothing is done with one before that is certain.

    It moves with the limits of the job.
    """
    until = choices.switched_off_at(job, moment.policy)
    if not moment.abilities.scheduler or until is None:
        return []
    mine = current(job).instance
    kept = candidates(job, moment) if job.phase is Phase.PROVISIONING or mine is None else [mine]
    known = moment.seen.guarded
    return [
        Guard(current(job).label, one.id, until)
        for one in kept
        if one.id not in known or abs(until - known[one.id]) >= _GUARD_MOVES
    ]


def upkeep(job: Job, moment: Moment) -> list[Effect | None]:
    """Return what is wished for all the while that a job has its machine: look at it, keep it, bound it, return what is too much."""
    watch = look(job, moment, moment.policy.instance_poll_s)
    return [watch, bid(job, moment), *guards(job, moment), *surplus(job, moment)]


def surplus(job: Job, moment: Moment) -> tuple[Destroy | Trace, ...]:
    """Return the wish to end what carries our label beside our instance, once it is ours: rivals that were not needed, what cannot serve,
    and what a request that was given up made after all. Where only records tell that a rival is gone, they are asked.
    """
    attempt, seen = current(job), moment.seen
    if attempt.instance is None or attempt.instance.borrowed:
        return ()
    racing = job.phase is Phase.PROVISIONING and bool(attempt.rivals)
    listed = [one for one in (*(seen.instances or ()), *(seen.traced or ())) if one.id != attempt.instance.id]
    others = dict.fromkeys(one.id for one in listed if not racing or one.id in attempt.dropped)
    ends = tuple(destroy(job, moment, instance_id) for instance_id in others)
    unsure = not racing and _alone(job, moment) and doubtful(job, moment) and (bool(others) or not traced(job, moment))
    asks = trace(job, moment) if unsure else None
    return ends if asks is None else (*ends, asks)


def _alone(job: Job, moment: Moment) -> bool:
    """Does the listing show our instance, and nothing else of what was asked for?"""
    return shows_everything(moment) and ours(job, moment) is not None and len(moment.seen.instances or ()) == 1


def destroy(job: Job, moment: Moment, instance_id: str) -> Destroy:
    """Return the wish to end an instance; asked again every half minute that it is still listed."""
    attempt = current(job)
    return Destroy(attempt.label, instance_id, round=int((moment.now - attempt.started_at).total_seconds() // 30))


def noted(job: Job, moment: Moment) -> Job | None:
    """Return the job with what the listing changes for its bill: that its rivals are gone, or that more has to be bid."""
    attempt, found = current(job), ours(job, moment)
    if found is None or attempt.offer is None:
        return None
    others = [one for one in moment.seen.traced or () if one.id != found.id]
    alone = _alone(job, moment) and (not doubtful(job, moment) or traced(job, moment)) and not others
    if attempt.rivals and attempt.rivals_gone_at is None and alone:
        return put(job, replace(attempt, rivals_gone_at=moment.now))
    terms = job.place.provision
    higher = choices.raised(attempt.offer, found.min_bid, terms.bid_margin, job.limits) if terms.raise_bid else None
    return put(job, replace(attempt, offer=higher, raised_at=moment.now)) if higher is not None else None


def bid(job: Job, moment: Moment) -> Bid | None:
    """Return the wish to bid what was saved, until the provider has accepted it from us."""
    attempt = current(job)
    if attempt.raised_at is None or attempt.offer is None:
        return None
    price = attempt.offer.price_per_hour - attempt.offer.disk_per_hour
    return Bid(attempt.label, price) if moment.seen.bid != price else None
