"""What ``--json`` prints, as documented in docs/cli.md. Scripts depend on it: fields are added, never renamed or removed.

Rules for editing: values in, plain JSON types out; times are ISO 8601 UTC, money is text in US dollars, sizes are bytes. What a person
sees in words comes from the same values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from decimal import Decimal

    from remote_trainer.errors import RemoteTrainerError
    from remote_trainer.model import Artifact, Attempt, Event, Job, Place, Plan, StepRun
    from remote_trainer.service.jobs import Snapshot


def job(value: Job, *, cost: Decimal, elapsed_s: float) -> dict[str, Any]:
    """Return the job as a line of a list shows it."""
    run = current_run(value)
    return {
        "id": value.id,
        "name": value.name,
        "tool": value.plan.tool,
        "driver": value.place.driver,
        "tenant": value.tenant,
        "priority": value.priority,
        "phase": value.phase.value,
        "verdict": value.verdict.value if value.verdict else None,
        "reason": value.reason.value if value.reason else None,
        "message": value.message,
        "note": value.note,
        "cancel_requested": value.cancel_requested_at is not None,
        "retry_of": value.retry_of,
        "evaluation_of": value.evaluation_of,
        "attempts": len(value.attempts),
        "step": run.key if run else None,
        "exit_code": run.exit_code if run else None,
        "created_at": _time(value.created_at),
        "finished_at": _time(value.finished_at),
        "elapsed_s": round(elapsed_s, 3),
        "cost_usd": str(cost),
    }


def places(every: Sequence[Place]) -> list[dict[str, Any]]:
    """Return where a job may run, first choice first; of its provision, what is not as it is for everybody."""
    from remote_trainer.document import to_document
    from remote_trainer.model import Provision

    plain = to_document(Provision())
    return [
        {
            "driver": place.driver,
            "driver_options": dict(place.options),
            "provision": {key: value for key, value in to_document(place.provision).items() if value != plain[key]},
        }
        for place in every
    ]


def preset(plan: Plan) -> dict[str, Any] | None:
    """Return what a preset has set and why, and what the user had set; None if none had a part in the plan."""
    chosen = plan.preset
    if chosen is None:
        return None
    return {
        "name": chosen.name,
        "facts": {"images": chosen.facts.images, "files": chosen.facts.files},
        "set": {name: {"value": plan.parameters[name], "because": why} for name, why in chosen.reasons.items()},
        "kept": {name: {"value": plan.parameters[name], "preset": value} for name, value in chosen.kept.items()},
        "advice": list(chosen.advice),
    }


def full_job(seen: Snapshot, *, elapsed_s: float, events: Sequence[Event], evaluations: Sequence[str] = ()) -> dict[str, Any]:
    """Return everything there is to know about a job."""
    value = seen.job
    return {
        **job(value, cost=seen.cost, elapsed_s=elapsed_s),
        "projected_cost_usd": str(seen.projected) if seen.projected is not None else None,
        "billed_usd": str(seen.billed) if seen.billed is not None else None,
        "reserved_usd": str(value.reserved) if value.reserved else None,
        "evaluations": list(evaluations),
        "metrics": dict(seen.values),
        "logs": dict(seen.log_sizes),
        "parameters": dict(value.plan.parameters),
        "preset": preset(value.plan),
        "plan_digest": value.plan.digest,
        "driver_options": dict(value.place.options),
        "places": places(value.places),
        "limits": {
            "max_hours": value.limits.max_hours,
            "max_cost_usd": str(value.limits.max_cost),
            "max_attempts": value.limits.max_attempts,
        },
        "inputs": [
            {"name": given.name, "source": given.source, "digest": given.digest, "size": given.size, "files": given.files}
            for given in value.inputs
        ],
        "tries": [_attempt(attempt, seen.at) for attempt in value.attempts],
        "artifacts": artifacts(value),
        "events": [
            {"seq": event.seq, "at": _time(event.at), "kind": event.kind, "message": event.message, "data": dict(event.data)}
            for event in events
        ],
    }


def artifacts(value: Job) -> list[dict[str, Any]]:
    """Return the files that the job has kept."""
    attempt = kept(value)
    return [artifact(each) for each in attempt.manifest.artifacts] if attempt and attempt.manifest else []


def artifact(value: Artifact) -> dict[str, Any]:
    """Return one kept file."""
    return {
        "path": value.path,
        "size": value.size,
        "sha256": value.sha256,
        "output": value.output,
        "kind": value.kind.value,
        "key": value.key,
    }


def failure(error: RemoteTrainerError, document: Mapping[str, Any]) -> dict[str, Any]:
    """Return an error that carries what is known all the same, such as the job that ended badly."""
    return {"error": type(error).__name__, "message": str(error), "exit_code": error.exit_code, **document}


def current_run(value: Job) -> StepRun | None:
    """Return the run of a step that is the current or last one."""
    return next((attempt.steps[-1] for attempt in reversed(value.attempts) if attempt.steps), None)


def kept(value: Job) -> Attempt | None:
    """Return the last attempt that kept anything."""
    return next((a for a in reversed(value.attempts) if a.manifest is not None and a.manifest.artifacts), None)


def _attempt(attempt: Attempt, now: datetime) -> dict[str, Any]:
    from remote_trainer.policy import cost_of

    cost = cost_of(attempt, now)
    return {
        "number": attempt.number,
        "label": attempt.label,
        "instance": attempt.instance.id if attempt.instance else None,
        "started_at": _time(attempt.started_at),
        "ended_at": _time(attempt.ended_at),
        "verdict": attempt.verdict.value if attempt.verdict else None,
        "reason": attempt.reason.value if attempt.reason else None,
        "message": attempt.message,
        "restored": attempt.restored.unit if attempt.restored else None,
        "cost_usd": str(cost.total),
        "cost_parts_usd": {name: f"{getattr(cost, name):.6f}" for name in ("machine", "disk", "traffic")},
        "bytes_in": attempt.bytes_in,
        "bytes_out": attempt.bytes_out,
        "steps": [
            {
                "name": run.name,
                "number": run.number,
                "state": run.state.value,
                "exit_code": run.exit_code,
                "why": run.why,
                "started_at": _time(run.started_at),
                "ended_at": _time(run.ended_at),
                "log_size": run.log_size,
            }
            for run in attempt.steps
        ],
    }


def _time(value: datetime | None) -> str | None:
    return value.isoformat() if value else None
