"""What a failed effect means for the attempt. Pure.

Rules for editing: errors are judged by class, in one table; "unreachable" never says anything about what runs on the host.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from remote_trainer import errors
from remote_trainer.effects import Bid, CollectOutputs, Create, Effect, FollowStep, PrepareHost, Severity, StopStep, Trouble
from remote_trainer.model import Reason
from remote_trainer.policy import Policy, backoff_s

#: First match counts. A borrowed machine cannot be changed for another one, so what it lacks ends the job.
_JUDGEMENT: tuple[tuple[type[BaseException], Severity, Reason], ...] = (
    (errors.HostKeyMismatch, Severity.UNSUITABLE, Reason.HOST_KEY_MISMATCH),
    (errors.HostLacks, Severity.UNSUITABLE, Reason.HOST_UNSUITABLE),
    (errors.HostFull, Severity.UNSUITABLE, Reason.HOST_UNSUITABLE),
    (errors.HostWiped, Severity.WIPED, Reason.HOST_WIPED),
    (errors.NoCapacity, Severity.RETRY, Reason.NO_CAPACITY),  # whether that is the end, the job's strategy says
    (errors.Permanent, Severity.FATAL, Reason.PROVISIONING_FAILED),
    (errors.DatasetError, Severity.FATAL, Reason.TRANSFER_FAILED),
    (errors.ModelRefused, Severity.FATAL, Reason.MODEL_REFUSED),
    (errors.UsageError, Severity.FATAL, Reason.INTERNAL),
)

#: What these effects are about goes on all the same: settings and rights may come back, as space on a disk may.
_GOES_ON = (FollowStep, StopStep, CollectOutputs, Bid)
_NOT_THE_HOSTS = (errors.ConfigError, errors.Permanent)

#: Tries, about ten minutes, before the full disk of a borrowed machine ends a job: others share it, and our own jobs there clean up.
_FULL_TRIES = 25


#: For so long a provider that has answered shows that our own network works.
_HEARD_S = 90.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """What a failure is judged by, besides itself."""

    before: Trouble | None  # the last one of the same kind of effect
    now: datetime
    policy: Policy
    borrowed: bool
    jitter: float  # a random number in 0..1
    heard_at: datetime | None = None  # when the provider last told us what is rented


def judge(effect: Effect, error: BaseException, given: Circumstances) -> Trouble:
    """Return the failure as the core knows it."""
    before, now, policy, borrowed = given.before, given.now, given.policy, given.borrowed
    kind = type(error).__name__
    alike = before is not None and before.error == kind
    alike_since = (before.alike_since if alike and before is not None else None) or now
    severity, reason = _judgement(effect, error)
    if isinstance(effect, PrepareHost) and not borrowed and isinstance(error, (errors.LoginRefused, errors.HostSilent)):
        waits = _may_come(error, (now - alike_since).total_seconds(), given)
        severity, reason = (Severity.RETRY, Reason.INTERNAL) if waits else (Severity.UNSUITABLE, Reason.HOST_UNSUITABLE)
    count = before.count + 1 if before is not None else 1
    if severity is Severity.UNSUITABLE and borrowed:
        waits = isinstance(error, errors.HostFull) and count < _FULL_TRIES
        severity = Severity.RETRY if waits else Severity.FATAL
    asked = getattr(error, "retry_after_s", None)
    knocks = isinstance(effect, PrepareHost) and not borrowed and isinstance(error, errors.HostUnreachable)
    base_s, max_s = policy.retry_base_s, policy.knock_max_s if knocks else policy.retry_max_s
    if reason is Reason.NO_CAPACITY:
        base_s, max_s = policy.capacity_retry_s / 8, policy.capacity_retry_s
    wait = max(backoff_s(count, base_s=base_s, max_s=max_s, jitter=given.jitter), asked or 0.0)
    return Trouble(
        severity=severity,
        reason=reason,
        # Half a character in what somebody else said is no text that could be saved.
        message=(str(error) or type(error).__name__).encode(errors="replace").decode(),
        at=now,
        retry_at=now + timedelta(seconds=wait),
        count=count,
        error=kind,
        alike_since=alike_since,
        retry_after_s=asked,
    )


def _may_come(error: BaseException, waited_s: float, given: Circumstances) -> bool:
    """May a rented machine that is being set up, and does this, serve in the end? It hears of our key late; networks need a moment.

    A silence is the machine's only while the provider answers: otherwise it may well be that of our own network.
    """
    if isinstance(error, errors.LoginRefused):
        return waited_s < given.policy.key_grace_s
    heard = given.heard_at is not None and (given.now - given.heard_at).total_seconds() < _HEARD_S
    return waited_s < given.policy.silence_s or not heard


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
