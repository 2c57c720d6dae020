"""Pure choices: how long to wait, how often to try, which offer to take, what it costs, when to give up.

Rules for editing: values in, values out; no clock, no randomness (a random number between 0 and 1 is an argument). Each number that a
user may want to change is a field of ``Policy`` with its unit in the name.
"""

from __future__ import annotations

from remote_trainer.policy.accounts import charged, misbilled, reservation, settlement
from remote_trainer.policy.bounds import (
    Unclaimed,
    deadline,
    deadman_s,
    evictions,
    fruitless,
    limit,
    switched_off_at,
    unclaimed,
    used_up,
)
from remote_trainer.policy.choice import (
    Estimate,
    Lot,
    estimate,
    estimate_plan,
    expected_cost,
    expected_hours,
    fits,
    is_avoided,
    nearly_best,
    needs,
    pick,
    raised,
    rank,
    with_bid,
)
from remote_trainer.policy.forecast import needed, projected_cost, seconds_left, spent_at
from remote_trainer.policy.money import Cost, attempt_cost, cost_between, cost_of, cost_of_job, job_cost
from remote_trainer.policy.patience import FOREVER_S, Policy, backoff_s, step_retry_at
from remote_trainer.policy.spending import Budget, Spending, committed, left_of, too_dear

__all__ = [
    "FOREVER_S",
    "Budget",
    "Cost",
    "Estimate",
    "Lot",
    "Policy",
    "Spending",
    "Unclaimed",
    "attempt_cost",
    "backoff_s",
    "charged",
    "committed",
    "cost_between",
    "cost_of",
    "cost_of_job",
    "deadline",
    "deadman_s",
    "estimate",
    "estimate_plan",
    "evictions",
    "expected_cost",
    "expected_hours",
    "fits",
    "fruitless",
    "is_avoided",
    "job_cost",
    "left_of",
    "limit",
    "misbilled",
    "nearly_best",
    "needed",
    "needs",
    "pick",
    "projected_cost",
    "raised",
    "rank",
    "reservation",
    "seconds_left",
    "settlement",
    "spent_at",
    "step_retry_at",
    "switched_off_at",
    "too_dear",
    "unclaimed",
    "used_up",
    "with_bid",
]
