"""How long things are waited for, and how long to wait before the next try.

Rules for editing: as in the package's docstring.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from remote_trainer.model import Retries

#: Ten years: longer waits are the same as none ending, and dates end somewhere.
FOREVER_S = 10 * 366 * 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The patience of one installation; seconds throughout."""

    provision_timeout_s: float = 1800.0  # until a rented machine must be usable; a borrowed one has until the job's limits
    max_provisioning: int = 12  # so often in a row a machine may be tried to get in vain; no seconds, but patience too
    capacity_retry_s: float = 60.0  # between two looks for a machine where there was none
    key_grace_s: float = 180.0  # a rented machine that is up may refuse our key for that long: it is told of it late
    silence_s: float = 300.0  # one that takes no connection for that long, while its provider answers, is changed for another one
    knock_max_s: float = 2.0  # between two logins to a rented machine that is being set up: it is paid for already
    transfer_timeout_s: float = 6 * 3600.0  # the same for its inputs
    fetch_timeout_s: float = 6 * 3600.0  # for results of a job that succeeded; on a borrowed machine until its limits, if later
    fetch_partial_timeout_s: float = 600.0  # for what a failed or cancelled job left
    fetch_overtime_s: float = 3600.0  # for results of a rented machine once a limit of the job is reached
    stop_timeout_s: float = 900.0  # after a step's own grace: a host that does not confirm its end by then is given up
    alarm_after_s: float = 300.0  # a rented machine that is not gone so long after its end was due is worth waking somebody
    release_grace_s: float = 60.0  # how long a borrowed host may keep us from ending the job
    gone_confirm_s: float = 20.0  # for so long listings must lack a rented instance before it counts as gone
    boot_poll_s: float = (
        2.0  # how often a machine is looked for that boots: once it runs it costs money. One request for all jobs
    )
    instance_poll_s: float = 30.0  # how often a rented instance is looked for while all is well
    lag_margin_s: float = 15.0  # on top of the driver's own visibility lag
    reap_every_s: float = 60.0  # how often is looked for rented machines that no attempt claims
    reap_grace_s: float = 120.0  # how long such a machine must have been seen before it is destroyed
    reap_unknown_s: float = 3600.0  # the same for a machine of a job that the store does not know: it may be an old copy
    reap_overtime_s: float = 2 * 3600.0  # so long after a job's limit nothing of it is claimed any more, whatever it says
    orphan_after_s: float = 1800.0  # so long without a word of any worker a rented machine on which no step runs ends itself
    orphan_hold_s: float = 6 * 3600.0  # the same where outputs would be lost that it could not put into an outbox
    retry_base_s: float = 0.25
    retry_max_s: float = 30.0
    unreachable_note_s: float = 10.0  # silence for that long is worth telling the user


def backoff_s(count: int, *, base_s: float, max_s: float, jitter: float = 0.5) -> float:
    """Return the wait before try ``count + 1``: doubling, capped, times 0.75 to 1.25 by ``jitter`` (0 to 1)."""
    exponent = min(max(count - 1, 0), 30)  # 2.0 ** 30 is past every cap; larger ones overflow
    return float(min(max_s, base_s * 2.0**exponent)) * (0.75 + jitter / 2)


def step_retry_at(retries: Retries, failures: int, exit_code: int, ended_at: datetime) -> datetime | None:
    """Return when a step that failed ``failures`` times may run again, None for never."""
    if failures > retries.max or (retries.on_exit and exit_code not in retries.on_exit):
        return None
    wait_s = backoff_s(failures, base_s=retries.backoff_s, max_s=retries.backoff_max_s)
    return ended_at + timedelta(seconds=min(FOREVER_S, wait_s))
