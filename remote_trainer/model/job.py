"""The durable request and how far it is. Rules for editing: as in the package's docstring."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any

from remote_trainer.model.attempt import Attempt
from remote_trainer.model.basics import SCHEMA, JobId, Phase, Reason, Token, Verdict
from remote_trainer.model.inputs import Input
from remote_trainer.model.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What bounds a job's spending and patience."""

    max_hours: float = 24.0  # wall time from the first attempt's start, hours
    max_cost: Decimal = Decimal(0)  # US dollars; 0: no cap
    max_attempts: int = 3


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
    inputs: tuple[Input, ...] = ()
    limits: Limits = Limits()
    priority: int = 0  # higher first
    retry_of: JobId | None = None  # an earlier job whose checkpoints may be resumed from
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
    def attempt(self) -> Attempt | None:
        """The current, or last, attempt."""
        return self.attempts[-1] if self.attempts else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right to act on a job until it is not renewed in time (by the store's clock)."""

    job: Job
    token: Token
    holder: str
