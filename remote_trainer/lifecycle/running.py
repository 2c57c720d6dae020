"""The phases in which the plan's steps run and their outputs are brought home: EXECUTING, FETCHING."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from remote_trainer import policy as choices
from remote_trainer.effects import (
    CollectOutputs,
    FollowStep,
    StartStep,
    StopStep,
    Trouble,
)
from remote_trainer.lifecycle.machines import lost, noted, upkeep
from remote_trainer.lifecycle.rules import (
    Decision,
    Moment,
    again,
    current,
    fetch,
    hopeless,
    judged,
    overrun,
    put,
    release,
    soon,
    verdict_of,
    wish,
    within,
)
from remote_trainer.model import (
    Job,
    Phase,
    PlannedStep,
    Reason,
    StepRun,
    StepState,
    Verdict,
)
from remote_trainer.ports import StepStatus

P = Phase


def executing(job: Job, moment: Moment) -> Decision:
    """Run the plan's steps in order, each run at most once."""
    attempt, seen = current(job), moment.seen
    run = attempt.steps[-1]
    step = next(planned for planned in job.plan.steps if planned.name == run.name)
    if why := lost(job, moment):
        return release(job, moment, Verdict.LOST, *why)
    if changed := noted(job, moment):
        return again(changed)
    trouble = hopeless(moment, StartStep, FollowStep, StopStep)
    if trouble is not None and run.state is not StepState.EXITED:
        return fetch(job, moment, verdict_of(trouble), trouble.reason, trouble.message)
    if seen.checkpoint is not None and seen.checkpoint != attempt.checkpoint:
        return again(put(job, replace(attempt, checkpoint=seen.checkpoint)))
    if run.state is StepState.EXITED:
        return _after_failure(job, moment, step, run)
    status = seen.steps.get(run.key)
    over = status is not None and status.state in (StepState.EXITED, StepState.LOST, StepState.CANCELLED)
    if status is not None and over and (run.key in seen.drained or status.state is StepState.CANCELLED):
        return _step_over(job, moment, step, run, status)
    unheard = _unheard_at(job, moment, step, run)
    if unheard is not None and moment.now >= unheard:
        return _unstopped(job, moment, run)
    if run.stop_at is None and (stop := _why_stop(job, moment, step, None if over else run)):
        return again(_put_run(job, replace(run, stop_at=moment.now, stop_reason=stop[0], why=stop[1])))
    return _drive(job, moment, step, run, status)


def _unstopped(job: Job, moment: Moment, run: StepRun) -> Decision:
    """Neither the end nor the rest of the log could be had: what was asked for must happen all the same.

    A rented machine is destroyed, which ends the step; on a borrowed one the supervisor's dead-man's switch does.
    """
    verdict = Verdict.CANCELLED if run.stop_reason is Reason.CANCELLED_BY_USER else Verdict.FAILED
    message = f"{run.why}; the host did not confirm that step {run.key} ended" + (f": {job.note}" if job.note else "")
    return fetch(job, moment, verdict, run.stop_reason or Reason.INTERNAL, message)


def _unheard_at(job: Job, moment: Moment, step: PlannedStep, run: StepRun) -> datetime | None:
    """Return when a stop that the host does not confirm has to do without its word, None for not yet.

    A step's own timeout alone is no reason where waiting is free: behind the silence it may have ended well in time, and a limit or
    the user ends the wait.
    """
    since = run.stop_at
    if since is not None and run.stop_reason is Reason.STEP_TIMEOUT and moment.abilities.borrowed:
        reached = choices.limit(job)
        ends = [at for at in (job.cancel_requested_at, reached[0] if reached else None) if at is not None]
        since = max(since, min(ends)) if ends else None
    return within(since, step.stop_grace_s + moment.policy.stop_timeout_s)


def _drive(job: Job, moment: Moment, step: PlannedStep, run: StepRun, status: StepStatus | None) -> Decision:
    """The step should be running, or ending: wish for everything that goes with it."""
    label = current(job).label
    wishes = upkeep(job, moment)
    if status is None or status.state is StepState.UNKNOWN:
        # Until the host has told us anything, a stop also takes the start away; a start that was sent before is adopted.
        wishes.append(StartStep(label, run.key) if run.stop_at is None else StopStep(label, run.key, step.stop_grace_s))
    else:
        wishes += [FollowStep(label, run.key), CollectOutputs(label, final=False)]
        if run.stop_at is not None and status.state in (StepState.RUNNING, StepState.ORPHAN):
            wishes.append(StopStep(label, run.key, step.stop_grace_s))
    ends = within(run.started_at, step.timeout_s) if step.timeout_s else None
    return wish(job, moment, *wishes, wake_at=soon(job, moment, ends, _unheard_at(job, moment, step, run)))


def _why_stop(job: Job, moment: Moment, step: PlannedStep, running: StepRun | None) -> tuple[Reason, str] | None:
    """Return why not to go on; ``running`` is None when only the rest of the log is waited for."""
    if job.cancel_requested_at is not None:
        return Reason.CANCELLED_BY_USER, "cancelled by the user"
    if over := overrun(job, moment):
        return over
    if running is not None and step.timeout_s and moment.after(running.started_at, step.timeout_s):
        return Reason.STEP_TIMEOUT, f"step {step.name} ran longer than its timeout of {step.timeout_s:g} s"
    return None


def _put_run(job: Job, run: StepRun) -> Job:
    attempt = current(job)
    return put(job, replace(attempt, steps=(*attempt.steps[:-1], run)))


def _step_over(job: Job, moment: Moment, step: PlannedStep, run: StepRun, status: StepStatus) -> Decision:
    """The supervisor gave its last word and the whole log is kept: record it and see what follows."""
    over = replace(run, state=status.state, exit_code=status.exit_code, ended_at=moment.now, log_size=status.size)
    job = _put_run(job, over)
    by_itself = status.state is StepState.EXITED and status.exit_code == 0 and not status.why  # before our stop reached it
    if run.stop_reason is Reason.CANCELLED_BY_USER or (run.stop_reason is not None and not by_itself):
        verdict = Verdict.CANCELLED if run.stop_reason is Reason.CANCELLED_BY_USER else Verdict.FAILED
        return fetch(job, moment, verdict, run.stop_reason, run.why)
    if status.state is StepState.CANCELLED:
        return fetch(job, moment, Verdict.LOST, Reason.SUPERVISOR_LOST, f"step {run.key} was taken away on the host")
    if status.state is StepState.LOST:
        rebooted = status.why == "reboot"
        reason = Reason.HOST_REBOOTED if rebooted else Reason.SUPERVISOR_LOST
        message = f"step {run.key} is gone: {'the host rebooted' if rebooted else 'its processes were killed'}"
        return fetch(job, moment, Verdict.LOST, reason, message)
    if status.why == "deadman":
        return fetch(job, moment, Verdict.LOST, Reason.DEADMAN, "the host stopped the step: no worker had spoken for too long")
    if status.exit_code != 0:
        return _after_failure(job, moment, step, over)
    position = next(index for index, planned in enumerate(job.plan.steps) if planned.name == step.name)
    if position + 1 == len(job.plan.steps):
        return fetch(job, moment, Verdict.SUCCEEDED, Reason.COMPLETED, "every step exited 0")
    return again(_append_run(job, StepRun(name=job.plan.steps[position + 1].name, number=1, started_at=moment.now)))


def _append_run(job: Job, run: StepRun) -> Job:
    attempt = current(job)
    return put(job, replace(attempt, steps=(*attempt.steps, run)))


def _after_failure(job: Job, moment: Moment, step: PlannedStep, run: StepRun) -> Decision:
    """A run exited non-zero: run the step again when its backoff is over, or end the attempt."""
    exit_code = run.exit_code if run.exit_code is not None else -1
    message = f"step {step.name} exited with code {exit_code}" + (f" after {run.number} runs" if run.number > 1 else "")
    if job.cancel_requested_at is not None:
        return fetch(job, moment, Verdict.CANCELLED, Reason.CANCELLED_BY_USER, "cancelled by the user")
    if over := overrun(job, moment):
        return fetch(job, moment, Verdict.FAILED, *over)
    retry_at = choices.step_retry_at(step.retries, run.number, exit_code, run.ended_at or moment.now)
    if retry_at is None:
        return fetch(job, moment, Verdict.FAILED, Reason.STEP_FAILED, message)
    if moment.now >= retry_at:
        return again(_append_run(job, StepRun(name=step.name, number=run.number + 1, started_at=moment.now)))
    collect = CollectOutputs(current(job).label, final=False)
    waiting = wish(job, moment, collect, *upkeep(job, moment), wake_at=soon(job, moment, retry_at))
    return replace(waiting, job=replace(job, note=f"{message}; next run at {retry_at:%H:%M:%S} UTC"))


def fetching(job: Job, moment: Moment) -> Decision:
    """Bring every output home and verify it, whatever the verdict."""
    attempt, seen = current(job), moment.seen
    if job.cancel_requested_at is not None and attempt.verdict is not Verdict.CANCELLED:
        cancelled = judged(attempt, Verdict.CANCELLED, Reason.CANCELLED_BY_USER, "cancelled by the user")
        return again(put(job, cancelled))
    succeeded = attempt.verdict is Verdict.SUCCEEDED
    if seen.collected is not None:
        kept = replace(attempt, manifest=seen.collected.manifest, checkpoint=seen.checkpoint or attempt.checkpoint)
        if succeeded and seen.collected.missing:
            names = ", ".join(seen.collected.missing)
            message = f"the steps exited 0 but left nothing for the required outputs: {names}"
            kept = replace(kept, verdict=Verdict.FAILED, reason=Reason.ARTIFACTS_MISSING, message=message)
        return release(put(job, kept), moment, kept.verdict or Verdict.FAILED, kept.reason or Reason.INTERNAL, kept.message)
    ends = _fetched_by(job, moment, succeeded)
    trouble = hopeless(moment, CollectOutputs)
    why = lost(job, moment)
    if trouble is not None or why is not None or moment.now >= ends:
        return _unfetched(job, moment, trouble, why)
    if changed := noted(job, moment):
        return again(changed)
    collect = CollectOutputs(attempt.label, final=True)
    return wish(job, moment, collect, *upkeep(job, moment), wake_at=soon(job, moment, ends))


def _fetched_by(job: Job, moment: Moment, succeeded: bool) -> datetime:
    """Return when to give up fetching: results are waited for until the limits where that is free, and not far beyond them elsewhere."""
    policy, began, reached = moment.policy, current(job).fetching_at or moment.now, choices.limit(job)
    patience_s = policy.fetch_timeout_s if succeeded else policy.fetch_partial_timeout_s
    ends = began + timedelta(seconds=min(choices.FOREVER_S, patience_s))
    if reached is None:
        return ends
    if moment.abilities.borrowed:
        return max(ends, reached[0]) if succeeded else ends
    overtime_s = policy.fetch_overtime_s if succeeded else policy.fetch_partial_timeout_s
    return min(ends, max(began, reached[0]) + timedelta(seconds=overtime_s))


def _unfetched(job: Job, moment: Moment, trouble: Trouble | None, gone: tuple[Reason, str] | None) -> Decision:
    """The outputs cannot be had. A success without verified outputs is no success: the attempt counts as lost."""
    attempt = current(job)
    if attempt.verdict is Verdict.SUCCEEDED:
        why = trouble.message if trouble else gone[1] if gone else job.note or "no answer in time"
        reason = gone[0] if gone and gone[0] is Reason.EVICTED else Reason.ARTIFACTS_MISSING
        attempt = replace(
            attempt,
            verdict=verdict_of(trouble) if trouble else Verdict.LOST,
            reason=trouble.reason if trouble else reason,
            message=f"the steps exited 0 but their outputs could not be kept: {why}",
        )
    return release(put(job, attempt), moment, Verdict.FAILED, Reason.INTERNAL, attempt.message)
