"""``remote-trainer show`` in words, from the same document that ``--json`` prints.

Rules for editing: a line for what matters first; what is empty is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from remote_trainer.cli import out, presets

_EVENTS_SHOWN = 30


def show(job: Mapping[str, Any]) -> None:
    """Print everything about a job."""
    named = f" ({job['name']})" if job["name"] != job["id"] else ""
    out.line(f"job {job['id']}{named}: {job['phase']}" + (f", {job['reason']}" if job["reason"] else ""))
    for label, text in _facts(job):
        if text:
            out.line(f"  {label:<11}{text}")
    for given in job["inputs"]:
        out.line(
            f"  {'input':<11}{given['name']}: {given['source']}, {out.plural(given['files'], 'file')}, {out.size(given['size'])}"
        )
    for each in job["tries"]:
        _try(each)
    if job["artifacts"]:
        out.line(f"artifacts, {out.plural(len(job['artifacts']), 'file')}:")
        for kept in job["artifacts"]:
            out.line(f"  {kept['path']}  {out.size(kept['size'])}  {kept['sha256'][:16]}")
    out.line("events:")
    for event in job["events"][-_EVENTS_SHOWN:]:
        out.line(f"  {event['at'][11:19]}  {event['message']}")


def _facts(job: Mapping[str, Any]) -> list[tuple[str, str]]:
    limits = job["limits"]
    cap = f", at most ${limits['max_cost_usd']}" if float(limits["max_cost_usd"]) else ""
    return [
        ("tool", job["tool"]),
        ("driver", f"{job['driver']} {out.settings(job['driver_options'])}"),
        ("or on", ", ".join(place["driver"] for place in job["places"]) if len(job["places"]) > 1 else ""),
        ("machines", out.settings(job["places"][0]["provision"])),
        ("message", job["message"]),
        ("note", job["note"]),
        ("submitted", f"{job['created_at'][:19].replace('T', ' ')} UTC"),
        ("time", out.duration(job["elapsed_s"])),
        ("cost", out.cost(job["cost_usd"], job["projected_cost_usd"])),
        ("billed", f"${float(job['billed_usd']):.2f} by the provider so far" if job["billed_usd"] else ""),
        ("reserved", f"${float(job['reserved_usd']):.2f} of {job['tenant']}'s account" if job["reserved_usd"] else ""),
        ("limits", f"{limits['max_hours']:g} h, {out.plural(limits['max_attempts'], 'attempt')}{cap}"),
        ("retry of", job["retry_of"] or ""),
        ("evaluates", job["evaluation_of"] or ""),
        ("evaluation", " ".join(job["evaluations"])),
        ("cancel", "requested" if job["cancel_requested"] else ""),
        ("parameters", out.settings(job["parameters"])),
        ("preset", presets.fact(job["preset"])),
        ("metrics", " ".join(f"{key}={out.number(value)}" for key, value in job["metrics"].items())),
    ]


def _try(each: Mapping[str, Any]) -> None:
    ended = f": {each['verdict']}, {each['reason']}" if each["verdict"] else ""
    resumed = f", resumed from {each['restored']}" if each["restored"] else ""
    cost = f", {paid}" if (paid := out.cost(each["cost_usd"])) else ""
    out.line(f"attempt {each['number']} on {each['instance'] or 'no machine yet'}{resumed}{cost}{ended}")
    for run in each["steps"]:
        code = "" if run["exit_code"] is None else f" with exit code {run['exit_code']}"
        log = "" if run["log_size"] is None else f", log {out.size(run['log_size'])}"
        out.line(f"  {run['name']}.{run['number']}  {run['state']}{code}{log}")
