"""What an installation may spend: caps and budgets, and what of them is used.

Rules for editing: as in money.py. 0 is no cap. A cap that time cannot open refuses an offer (``too_dear``); the others are waited for,
in worker/gates.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal

from remote_trainer.model import Job, Offer
from remote_trainer.policy.choice import Estimate, estimate, expected_cost
from remote_trainer.policy.forecast import needed
from remote_trainer.policy.money import attempt_cost, cost_between, job_cost

#: The budget of tenants that have none of their own.
EVERYBODY = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What one tenant's jobs may cost, US dollars."""

    per_day: Decimal = Decimal(0)  # a day of UTC
    per_month: Decimal = Decimal(0)

    def periods(self, now: datetime) -> dict[str, tuple[Decimal, datetime]]:
        """Return the caps there are, with the moments since which they count."""
        day = now.replace(hour=0, minute=0, second=0, microsecond=0)
        caps = {"day": (self.per_day, day), "month": (self.per_month, day.replace(day=1))}
        return {name: each for name, each in caps.items() if each[0]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Spending:
    """The caps of one installation, US dollars an hour, and its tenants' budgets."""

    max_instance_price: Decimal = Decimal(0)
    max_hourly_spend: Decimal = Decimal(0)
    budgets: Mapping[str, Budget] = field(default_factory=dict)

    def budget(self, tenant: str) -> Budget:
        """Return the budget of a tenant."""
        return self.budgets.get(tenant) or self.budgets.get(EVERYBODY) or Budget()


def left_of(job: Job, now: datetime) -> Decimal | None:
    """Return what a job may still cost; None without a cap."""
    return job.limits.max_cost - job_cost(job, now) if job.limits.max_cost else None


def too_dear(offer: Offer, run: Estimate, spending: Spending, *, tenant: str, left: Decimal | None) -> str:
    """Return why an offer may not be rented however long one waits, or an empty string. ``left``: what the job may still cost."""
    if not offer.price_per_hour:
        return ""
    price, need, budget = offer.price_per_hour, needed(offer, run), spending.budget(tenant)
    for cap, name in ((spending.max_instance_price, "max_instance_price"), (spending.max_hourly_spend, "max_hourly_spend")):
        if cap and price > cap:
            return f"an hour costs {price} $, and {name} is {cap} $"
    if left is not None and need > left:
        return f"a run needs {need:.2f} $, and {max(left, Decimal(0)):.2f} $ are left of what the job may cost"
    for cap, name in ((budget.per_day, "day"), (budget.per_month, "month")):
        if cap and need > cap:
            return f"a run needs {need:.2f} $, and {tenant} may spend {cap} $ a {name}"
    return ""


def committed(job: Job, since: datetime, now: datetime) -> Decimal:
    """Return what a job uses of a budget that counts since then: its cost and, while it has a machine, what that is expected to cost."""
    cost, attempt = cost_between(job, since, now), job.attempt
    if job.phase.terminal or attempt is None or attempt.offer is None or attempt.ended_at is not None:
        return cost
    return cost + max(Decimal(0), expected_cost(attempt.offer, estimate(job)) - attempt_cost(attempt, now))
