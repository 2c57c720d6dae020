"""What a job has cost: our own meter, on the safe side of what the provider will bill.

A rented machine costs its disk from the request until it is gone, the rest of its price from when it was ready until some minutes after
it is gone, and every byte brought there and back. Those minutes are owed as soon as it is ready, so they are counted from then on: what
the meter says is what will have been paid if the machine is gone now.

Rules for editing: as in the package's docstring; money is ``Decimal``, US dollars, and rounded once, at the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from remote_trainer.model import Attempt, Instance, Job, Offer

BILLED_TAIL_S = 300.0  # providers charge for some minutes after the end
_MICRO = Decimal("0.000001")
_GB = Decimal(10**9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What something costs, by what it is paid for; US dollars, not rounded."""

    machine: Decimal = Decimal(0)
    disk: Decimal = Decimal(0)
    traffic: Decimal = Decimal(0)

    def __add__(self, other: Cost) -> Cost:
        return Cost(machine=self.machine + other.machine, disk=self.disk + other.disk, traffic=self.traffic + other.traffic)

    @property
    def exact(self) -> Decimal:
        """All of it."""
        return self.machine + self.disk + self.traffic

    @property
    def total(self) -> Decimal:
        """All of it, rounded."""
        return self.exact.quantize(_MICRO)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rental:
    """One machine of an attempt, as the meter sees it."""

    machine_per_hour: Decimal
    disk_per_hour: Decimal
    since: datetime
    ready_at: datetime | None
    gone_at: datetime | None

    def cost(self, at: datetime) -> Cost:
        """Return what will have been paid for it if it is gone ``at``, or was before."""
        until = min(at, self.gone_at or at)
        disk = self.disk_per_hour * _hours(self.since, until)
        if self.ready_at is None or at < self.ready_at:
            return Cost(disk=disk)
        return Cost(machine=self.machine_per_hour * _hours(self.ready_at, until + timedelta(seconds=BILLED_TAIL_S)), disk=disk)

    @property
    def tail(self) -> Decimal:
        """What of its cost is for the minutes after its end."""
        return self.machine_per_hour * Decimal(BILLED_TAIL_S) / 3600 if self.ready_at is not None else Decimal(0)


def rentals(attempt: Attempt) -> Iterator[Rental]:
    """Yield the machines that an attempt rents, or rented."""
    since = attempt.requested_at
    if attempt.offer is None or since is None:
        return
    ready_at, gone_at = _ready_at(attempt, since), _gone_at(attempt)
    machine, disk = prices(attempt.offer, attempt.instance, raised=attempt.raised_at is not None)
    yield Rental(machine_per_hour=machine, disk_per_hour=disk, since=since, ready_at=ready_at, gone_at=gone_at)
    for rival in attempt.rivals:
        machine, disk = prices(rival)
        # When it was ready is not known: at the latest with the one that was kept.
        rival_gone_at = attempt.rivals_gone_at or gone_at
        yield Rental(machine_per_hour=machine, disk_per_hour=disk, since=since, ready_at=ready_at, gone_at=rival_gone_at)


def _ready_at(attempt: Attempt, since: datetime) -> datetime | None:
    """Return since when a machine is paid for as ready.

    One that is given back before it was seen ready may get so all the same until it is gone.
    """
    if attempt.ready_at is None and attempt.facts is not None:
        return since  # saved by a version that did not note it
    return attempt.ready_at or attempt.releasing_at


def _gone_at(attempt: Attempt) -> datetime | None:
    """Return when it was gone; not before anything else that is known of it, since workers' clocks may differ."""
    if attempt.ended_at is None:
        return None
    known = (attempt.requested_at, attempt.ready_at, attempt.executing_at, attempt.fetching_at, attempt.releasing_at)
    return max(attempt.ended_at, *(at for at in known if at is not None))


def prices(offer: Offer, instance: Instance | None = None, *, raised: bool = False) -> tuple[Decimal, Decimal]:
    """Return what an hour costs: the machine, and its disk. What the provider says of the instance counts more than the offer.

    ``raised``: the offer tells of a bid that is newer than the instance.
    """
    total, disk = offer.price_per_hour, offer.disk_per_hour
    if instance is not None and instance.price_per_hour > 0:
        total, disk = max(instance.price_per_hour, total if raised else Decimal(0)), instance.disk_per_hour
    return max(Decimal(0), total - disk), disk


def cost_of(attempt: Attempt, at: datetime) -> Cost:
    """Return what an attempt will have cost if its machines are gone ``at``, or were before. Monotone in ``at``."""
    total = Cost()
    for rental in rentals(attempt):
        total += rental.cost(at)
    if attempt.offer is None or attempt.requested_at is None or at < attempt.requested_at:
        return total
    brought = attempt.offer.price_per_gb_in * attempt.bytes_in / _GB
    fetched = attempt.offer.price_per_gb_out * attempt.bytes_out / _GB
    return total + Cost(traffic=brought + fetched)


def attempt_cost(attempt: Attempt, at: datetime) -> Decimal:
    """Return what an attempt costs, US dollars."""
    return cost_of(attempt, at).total


def cost_of_job(job: Job, at: datetime) -> Cost:
    """Return what a job costs, by what it is paid for."""
    total = Cost()
    for attempt in job.attempts:
        total += cost_of(attempt, at)
    return total


def job_cost(job: Job, at: datetime) -> Decimal:
    """Return what a job costs, US dollars."""
    return cost_of_job(job, at).total


def cost_between(job: Job, since: datetime, at: datetime) -> Decimal:
    """Return what of a job's cost falls into a time."""
    return job_cost(job, at) - job_cost(job, since)


def _hours(since: datetime, until: datetime) -> Decimal:
    """Return the hours between, exact to the microsecond; 0 if they are the wrong way round."""
    return max(Decimal(0), Decimal((until - since) // timedelta(microseconds=1)) / 3_600_000_000)
