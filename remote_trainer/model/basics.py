"""The enums and ids that everything else is made of. Rules for editing: as in the package's docstring."""

from __future__ import annotations

from enum import StrEnum
from typing import NewType

#: Version of the stored job document. A worker leaves a job with a higher one alone.
SCHEMA = 2

JobId = NewType("JobId", str)
#: Fencing token: handed out by the store at each claim of a job; only grows.
Token = NewType("Token", int)


class Phase(StrEnum):
    """Where a job is. The table of legal moves is ``lifecycle.TRANSITIONS``."""

    QUEUED = "queued"
    PROVISIONING = "provisioning"
    TRANSFERRING = "transferring"
    EXECUTING = "executing"
    FETCHING = "fetching"
    RELEASING = "releasing"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        """True when nothing can follow and nothing costs money any more."""
        return self in (Phase.DONE, Phase.FAILED, Phase.CANCELLED)


class Verdict(StrEnum):
    """How an attempt, or the job, ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    LOST = "lost"  # the instance or the process vanished: another attempt may follow


class Reason(StrEnum):
    """Why: the enum that explains a verdict. Each is documented in docs/lifecycle.md."""

    COMPLETED = "completed"
    STEP_FAILED = "step_failed"
    STEP_TIMEOUT = "step_timeout"
    CANCELLED_BY_USER = "cancelled_by_user"
    TIME_LIMIT = "time_limit"
    COST_LIMIT = "cost_limit"
    NO_CAPACITY = "no_capacity"
    MODEL_REFUSED = "model_refused"
    PROVISIONING_FAILED = "provisioning_failed"
    HOST_UNSUITABLE = "host_unsuitable"
    HOST_KEY_MISMATCH = "host_key_mismatch"
    TRANSFER_FAILED = "transfer_failed"
    ARTIFACTS_MISSING = "artifacts_missing"
    INSTANCE_GONE = "instance_gone"
    EVICTED = "evicted"
    HOST_REBOOTED = "host_rebooted"
    SUPERVISOR_LOST = "supervisor_lost"
    HOST_WIPED = "host_wiped"
    DEADMAN = "deadman"
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"
    INTERNAL = "internal"
