"""The durable request and how far it is. Rules for editing: as in the package's docstring."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any

from remote_trainer.model.attempt import Attempt
from remote_trainer.model.basics import SCHEMA, JobId, Phase, Reason, Token, Verdict
from remote_trainer.model.inputs import Input
from remote_trainer.model.plan import Plan, Resources


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What bounds a job's spending and patience."""

    max_hours: float = 24.0  # wall time from the first attempt's start, hours
    max_cost: Decimal = Decimal(0)  # US dollars; 0: no cap
    max_attempts: int = 3


class Strategy(StrEnum):
    """How a job with several places to run at chooses among them."""

    PREFERRED = "preferred"  # the first that has a machine, in the order given
    CHEAPEST = "cheapest"  # the least expected cost of the whole run, over all of them
    FASTEST = "fastest"  # the earliest expected end, over all of them
    QUEUE = "queue"  # the first that has a machine, and waits for one rather than fail


@dataclass(frozen=True, slots=True, kw_only=True)
class Provision:
    """How a job gets its machines."""

    strategy: Strategy = Strategy.PREFERRED
    race: int = 1  # machines rented at once for one attempt: the first that is ready is kept, the others are returned
    spot: bool = False  # rent machines that the provider may take back, where there are such
    max_evictions: int = 2  # after so many of them the job rents on demand
    bid_margin: Decimal = Decimal("1.25")  # what is bid, as a multiple of the least that would win
    raise_bid: bool = False  # bid more, up to the job's other caps, when a running machine is about to be lost
    min_mbit: float = 0.0  # a rented machine to which less comes through is changed for another one; Mbit/s, 0: any will do


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a job may run: a driver with its options, and what its profile says of machines there."""

    driver: str
    options: Mapping[str, Any] = field(default_factory=dict)  # e.g. {"host": "user@box:22"}; no secrets
    resources: Resources = Resources()  # wished for there besides what the plan needs
    provision: Provision = Provision()  # the job's own, as this place has it


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The durable request: this plan, this data, this budget; and how far it is."""

    id: JobId
    name: str
    plan: Plan
    driver: str
    created_at: datetime
    tenant: str = "default"
    driver_options: Mapping[str, Any] = field(default_factory=dict)  # e.g. {"host": "user@box:22"}; no secrets
    fallbacks: tuple[Place, ...] = ()  # where else it may run
    wishes: Resources = Resources()  # of the first place, besides what the plan needs
    provision: Provision = Provision()  # of the first place; its strategy is the job's
    inputs: tuple[Input, ...] = ()
    limits: Limits = Limits()
    priority: int = 0  # higher first
    reserved: Decimal = Decimal(0)  # US dollars of the tenant's account that were set aside for it; 0: the tenant has none
    retry_of: JobId | None = None  # an earlier job whose checkpoints may be resumed from
    evaluation_of: JobId | None = None  # an earlier job whose checkpoints this one compares
    schema: int = SCHEMA

    phase: Phase = Phase.QUEUED
    since: datetime | None = None  # when the phase was entered
    attempts: tuple[Attempt, ...] = ()
    note: str = ""  # what it waits for, for people: "host unreachable since …"
    verdict: Verdict | None = None
    reason: Reason | None = None
    message: str = ""
    finished_at: datetime | None = None

    #: Set by the store from its own column, never by save(): the user's wish must not be lost to a worker's write.
    cancel_requested_at: datetime | None = None

    @property
    def places(self) -> tuple[Place, ...]:
        """Everywhere the job may run; an attempt names one by its index."""
        first = Place(driver=self.driver, options=self.driver_options, resources=self.wishes, provision=self.provision)
        return (first, *self.fallbacks)

    @property
    def place(self) -> Place:
        """Where the current, or last, attempt runs; the first one before that."""
        return self.places[self.attempts[-1].place if self.attempts else 0]

    @property
    def attempt(self) -> Attempt | None:
        """The current, or last, attempt."""
        return self.attempts[-1] if self.attempts else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right to act on a job until it is not renewed in time (by the store's clock)."""

    job: Job
    token: Token
    holder: str
