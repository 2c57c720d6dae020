"""Pure choices: how long to wait, how often to try, which offer to take, what it costs, when to give up.

Rules for editing: values in, values out; no clock, no randomness (a random number between 0 and 1 is an argument). Each number that a
user may want to change is a field of ``Policy`` with its unit in the name.
"""

from __future__ import annotations

from remote_trainer.policy.bounds import Unclaimed, deadline, deadman_s, limit, unclaimed
from remote_trainer.policy.choice import (
    Estimate,
    choose_offer,
    estimate,
    estimate_plan,
    expected_cost,
    fits,
    is_avoided,
    nearly_best,
    rank,
)
from remote_trainer.policy.forecast import needed, projected_cost, seconds_left, spent_at
from remote_trainer.policy.money import Cost, attempt_cost, cost_between, cost_of, cost_of_job, job_cost
from remote_trainer.policy.patience import FOREVER_S, Policy, backoff_s, step_retry_at

__all__ = [
    "FOREVER_S",
    "Cost",
    "Estimate",
    "Policy",
    "Unclaimed",
    "attempt_cost",
    "backoff_s",
    "choose_offer",
    "cost_between",
    "cost_of",
    "cost_of_job",
    "deadline",
    "deadman_s",
    "estimate",
    "estimate_plan",
    "expected_cost",
    "fits",
    "is_avoided",
    "job_cost",
    "limit",
    "nearly_best",
    "needed",
    "projected_cost",
    "rank",
    "seconds_left",
    "spent_at",
    "step_retry_at",
    "unclaimed",
]
