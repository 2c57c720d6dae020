"""What a failed effect means for the attempt. Pure.

Rules for editing: errors are judged by class, in one table; "unreachable" never says anything about what runs on the host.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from remote_trainer import errors
from remote_trainer.effects import CollectOutputs, Create, Effect, FollowStep, PrepareHost, Severity, StopStep, Trouble
from remote_trainer.model import Reason
from remote_trainer.policy import Policy, backoff_s

#: First match counts. A borrowed machine cannot be changed for another one, so what it lacks ends the job.
_JUDGEMENT: tuple[tuple[type[BaseException], Severity, Reason], ...] = (
    (errors.HostKeyMismatch, Severity.UNSUITABLE, Reason.HOST_KEY_MISMATCH),
    (errors.HostLacks, Severity.UNSUITABLE, Reason.HOST_UNSUITABLE),
    (errors.HostFull, Severity.UNSUITABLE, Reason.HOST_UNSUITABLE),
    (errors.HostWiped, Severity.WIPED, Reason.HOST_WIPED),
    (errors.NoCapacity, Severity.FATAL, Reason.NO_CAPACITY),
    (errors.Permanent, Severity.FATAL, Reason.PROVISIONING_FAILED),
    (errors.DatasetError, Severity.FATAL, Reason.TRANSFER_FAILED),
    (errors.UsageError, Severity.FATAL, Reason.INTERNAL),
)

#: What these effects are about goes on all the same: settings and rights may come back, as space on a disk may.
_GOES_ON = (FollowStep, StopStep, CollectOutputs)
_NOT_THE_HOSTS = (errors.ConfigError, errors.Permanent)

#: Tries, about ten minutes, before the full disk of a borrowed machine ends a job: others share it, and our own jobs there clean up.
_FULL_TRIES = 25


def judge(
    effect: Effect, error: BaseException, *, before: Trouble | None, now: datetime, policy: Policy, borrowed: bool, jitter: float
) -> Trouble:
    """Return the failure as the core knows it; ``before`` is the last one of the same kind, ``jitter`` a random number in 0..1."""
    severity, reason = _judgement(effect, error)
    count = before.count + 1 if before is not None else 1
    if severity is Severity.UNSUITABLE and borrowed:
        waits = isinstance(error, errors.HostFull) and count < _FULL_TRIES
        severity = Severity.RETRY if waits else Severity.FATAL
    asked = getattr(error, "retry_after_s", None)
    wait = max(backoff_s(count, base_s=policy.retry_base_s, max_s=policy.retry_max_s, jitter=jitter), asked or 0.0)
    return Trouble(
        severity=severity,
        reason=reason,
        # Half a character in what somebody else said is no text that could be saved.
        message=(str(error) or type(error).__name__).encode(errors="replace").decode(),
        at=now,
        retry_at=now + timedelta(seconds=wait),
        count=count,
        retry_after_s=asked,
    )


def _judgement(effect: Effect, error: BaseException) -> tuple[Severity, Reason]:
    if isinstance(error, errors.LoginRefused) and isinstance(effect, PrepareHost):
        # Only now: later on it may be a key that is being replaced, and what runs there runs.
        return Severity.UNSUITABLE, Reason.HOST_UNSUITABLE
    if isinstance(effect, _GOES_ON) and isinstance(error, _NOT_THE_HOSTS):
        return Severity.RETRY, Reason.INTERNAL
    for kind, severity, reason in _JUDGEMENT:
        if isinstance(error, kind):
            if isinstance(effect, (FollowStep, CollectOutputs)) and isinstance(error, (errors.HostFull, errors.HostLacks)):
                break  # the step goes on all the same; space may come back
            if isinstance(effect, Create) and isinstance(error, errors.Permanent):
                # Most often the offer was taken by somebody else: the next attempt asks for another one.
                return Severity.UNSUITABLE, reason
            return severity, reason
    return Severity.RETRY, Reason.INTERNAL
