"""The dialect of the account: who, what it has cost, its keys, its scheduler and its log.

Rules for editing: as in ``routes``. Amounts are US dollars.
"""

from __future__ import annotations

import json
from typing import Any

from remote_trainer.testing.vast.instances import Instance, Meter
from remote_trainer.testing.vast.provider import Provider
from remote_trainer.testing.vast.reply import Refused, Reply, ok, refusal
from remote_trainer.testing.vast.routes import Request, Route

_CHARGES_MAX = 500


def whoami(sim: Provider, request: Request) -> Reply:
    """Show the account."""
    return Reply(body=sim.account.document())


# -- money


def charges(sim: Provider, request: Request) -> Reply:
    """List what instances have cost that were there in some days; the range is required."""
    days = _filters(request).get("day") or {}
    if "gte" not in days or "lte" not in days:
        raise refusal(400, "invalid_request", "select_filters must contain a day range")
    every = (*sim.past, *sim.live.values())
    there = [each for each in every if each.created_at <= days["lte"] and (each.billed_until or days["gte"]) >= days["gte"]]
    rows = [_charge(sim, each) for each in there]
    if request.query.get("latest_first") == "true":
        rows.reverse()
    start = _start(request.query.get("after_token"))
    end = start + min(_CHARGES_MAX, int(request.query.get("limit") or 20))
    token = str(end) if end < len(rows) else None
    page = rows[start:end]
    return ok(count=len(page), total=len(rows), results=page, next_token=token)


def _charge(sim: Provider, instance: Instance) -> dict[str, Any]:
    start, end, meter = instance.created_at, instance.billed_until or sim.now, instance.meter
    items: list[dict[str, Any]] = [
        {"type": kind, "source": None, "description": text, "amount": round(amount, 6), "start": start, "end": end, "items": []}
        for kind, text, amount in _items(instance, meter)
    ]
    return {
        "start": start,
        "end": end,
        "type": "instance",
        "source": f"instance-{instance.id}",
        "description": f"Instance {instance.id} Charges",
        "amount": round(float(meter.total), 6),
        "metadata": {"label": instance.label or None, "template_id": None},
        "items": items,
    }


def _items(instance: Instance, meter: Meter) -> tuple[tuple[str, str, float], ...]:
    storage = instance.disk_gb * float(instance.offer.get("storage_cost") or 0)
    return (
        ("gpu", f"{meter.gpu_s / 3600:.3f} hours at ${instance.gpu_price}/hour", float(meter.gpu)),
        ("disk", f"{meter.disk_s / 3600:.3f} hours at ${storage:.3f}/month", float(meter.disk)),
    )


def invoices(sim: Provider, request: Request) -> Reply:
    """List what was paid in: nothing here."""
    return ok(count=0, total=0, results=[], next_token=None)


def old_invoices(sim: Provider, request: Request) -> Reply:
    """List what was paid in, in the older form."""
    current = {"charges": float(sim.cost()), "service_fee": 0.0, "total": float(sim.cost()), "credit": float(sim.account.credit)}
    return Reply(body={"invoices": [], "current": current})


def _filters(request: Request) -> dict[str, Any]:
    try:
        found = json.loads(request.query.get("select_filters") or "{}")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise refusal(400, "invalid_request", "select_filters is not JSON")
    return found


def _start(token: str | None) -> int:
    if token and not token.isdecimal():
        raise refusal(400, "invalid_token", "The pagination token is invalid.")
    return int(token or 0)


# -- SSH keys


def show_keys(sim: Provider, request: Request) -> Reply:
    """List the account's keys."""
    return Reply(body=list(sim.account.ssh_keys.values()))


def add_key(sim: Provider, request: Request) -> Reply:
    """Keep a key that instances made from now on let in."""
    return ok(key=sim.account.add_ssh_key(str(request.fields.get("ssh_key") or "").strip(), sim.now))


def delete_key(sim: Provider, request: Request) -> Reply:
    """Forget a key; instances keep it."""
    if sim.account.ssh_keys.pop(request.number, None) is None:
        raise refusal(404, "no_such_ssh_key", f"SSH key {request.number} not found.")
    return ok()


# -- the scheduler


def show_schedule(sim: Provider, request: Request) -> Reply:
    """List scheduled requests."""
    return Reply(body=[job.document() for job in sim.schedule.jobs.values()])


def add_schedule(sim: Provider, request: Request) -> Reply:
    """Schedule a request; one for each instance."""
    if not request.fields.get("api_endpoint") or request.fields.get("start_time") is None:
        raise refusal(400, "invalid_args", "api_endpoint and start_time are needed")
    known = sim.schedule.of_instance(request.fields.get("instance_id"))
    if known is not None:
        body = {"success": False, "error": "already_exists", "msg": "a job exists", "scheduled_job_id": known.id}
        raise Refused(Reply(status=422, body=body))
    return ok(scheduled_job_id=sim.schedule.add(dict(request.fields), sim.now).id)


def change_schedule(sim: Provider, request: Request) -> Reply:
    """Change a scheduled request."""
    _known_job(sim, request.number)
    return ok(scheduled_job_id=sim.schedule.replace(request.number, dict(request.fields), sim.now).id)


def delete_schedule(sim: Provider, request: Request) -> Reply:
    """Take a scheduled request back."""
    _known_job(sim, request.number)
    del sim.schedule.jobs[request.number]
    return ok()


def _known_job(sim: Provider, number: int) -> None:
    if number not in sim.schedule.jobs:
        raise refusal(404, "not_found", f"Scheduled job {number} not found.")


def audit(sim: Provider, request: Request) -> Reply:
    """List what was asked of the account."""
    return Reply(body=list(sim.audit))


_JOBS = "/api/v0/commands/schedule_job/"
TABLE = (
    Route(method="GET", path="/api/v0/users/current/", handler=whoami, group="user_read", bare=True),
    Route(
        method="GET", path="/api/v0/users/me/invoices/", handler=old_invoices, group="billing_read", kind="invoices", bare=True
    ),
    Route(method="GET", path="/api/v0/charges/", handler=charges, group="billing_read", kind="charges"),
    Route(method="GET", path="/api/v1/invoices/", handler=invoices, group="billing_read", kind="invoices"),
    Route(method="GET", path="/api/v0/ssh/", handler=show_keys, group="user_read"),
    Route(method="POST", path="/api/v0/ssh/", handler=add_key, group="user_write"),
    Route(method="DELETE", path="/api/v0/ssh/{}/", handler=delete_key, group="user_write"),
    Route(method="GET", path=_JOBS, handler=show_schedule, group="instance_read"),
    Route(method="POST", path=_JOBS, handler=add_schedule, group="instance_write"),
    Route(method="PUT", path=_JOBS + "{}/", handler=change_schedule, group="instance_write"),
    Route(method="DELETE", path=_JOBS + "{}/", handler=delete_schedule, group="instance_write"),
    Route(method="GET", path="/api/v0/audit_logs/", handler=audit, group="misc"),
)
