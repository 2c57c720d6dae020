"""The dialect of money: what was billed, what was paid in, whose contract it was.

Rules for editing: as in ``routes``. Amounts are US dollars.
"""

from __future__ import annotations

import json
from typing import Any

from remote_trainer.testing.vast import bills
from remote_trainer.testing.vast.provider import Provider
from remote_trainer.testing.vast.reply import Reply, ok, refusal
from remote_trainer.testing.vast.routes import Request, Route

_PAGE, _PAGE_MAX = 20, 500


def charges(sim: Provider, request: Request) -> Reply:
    """List what things have cost on some days; the range is required."""
    filters = _filters(request)
    days = filters.get("day") or {}
    if "gte" not in days or "lte" not in days:
        raise refusal(400, "invalid_request", "select_filters must contain a day range")
    types = (filters.get("type") or {}).get("in") or ["instance", "volume"]
    return _paged(request, bills.charges(sim, float(days["gte"]), float(days["lte"]), types))


def invoices(sim: Provider, request: Request) -> Reply:
    """List what was paid in."""
    when = _filters(request).get("when") or {}
    since, until = when.get("gte"), when.get("lte")
    if since is None or until is None or float(since) > float(until):
        return Reply(body={"success": False, "error": "invalid_request", "msg": "Invalid date range"})
    rows = [
        {
            "start": at,
            "end": at,
            "type": "invoice",
            "source": f"invoice-{number}",
            "description": why,
            "amount": float(amount),
            "amount_cents": int(amount * 100),
            "metadata": {"service": "manual"},
            "items": [],
        }
        for number, (at, amount, why) in enumerate(sim.account.payments, start=1)
        if float(since) <= at <= float(until)
    ]
    return _paged(request, rows)


def old_invoices(sim: Provider, request: Request) -> Reply:
    """List charges and payments in the older form."""
    since, until = float(request.query.get("sdate") or 0), float(request.query.get("edate") or sim.now)
    paid = [
        {"id": number, "type": "payment", "timestamp": at, "amount": float(amount), "description": why, "instance_id": None}
        for number, (at, amount, why) in enumerate(sim.account.payments, start=1)
        if since <= at <= until
    ]
    charged = [_old_charge(row, item) for row in bills.charges(sim, since, until, ["instance"]) for item in row["items"]]
    with_charges = request.query.get("inc_charges") != "false"
    cost, credit = round(float(sim.cost()), 6), round(float(sim.account.credit), 6)
    current = {"charges": cost, "service_fee": 0.0, "total": cost, "credit": credit}
    return Reply(body={"invoices": [*(charged if with_charges else ()), *paid], "current": current})


def _old_charge(row: dict[str, Any], item: dict[str, Any]) -> dict[str, Any]:
    number = int(row["source"].rpartition("-")[2])
    text = f"Instance {number} {item['type']} charge: {item['description']}"
    facts = {"timestamp": row["end"], "amount": item["amount"], "quantity": item["description"].split(" ")[0], "rate": ""}
    return {"id": None, "type": "charge", "description": text, "instance_id": number, **facts}


def contracts(sim: Provider, request: Request) -> Reply:
    """Find contracts by label, among those that are named."""
    label, numbers = request.fields.get("label"), request.fields.get("contract_ids")
    every = (*sim.past, *sim.live.values())
    found = [each for each in every if (label is None or each.label == label) and (numbers is None or each.id in numbers)]
    return ok(contracts=[{"id": each.id, "label": each.label or None, "start_date": each.created_at} for each in found])


def _paged(request: Request, rows: list[dict[str, Any]]) -> Reply:
    if request.query.get("latest_first", "").lower() == "true":
        rows.reverse()
    start = _start(request.query.get("after_token"))
    end = start + min(_PAGE_MAX, int(request.query.get("limit") or _PAGE))
    page = rows[start:end]
    return ok(count=len(page), total=len(rows), results=page, next_token=str(end) if end < len(rows) else None)


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


_OLD = "/api/v0/users/me/invoices/"
TABLE = (
    Route(method="GET", path=_OLD, handler=old_invoices, group="billing_read", kind="invoices", bare=True),
    Route(method="GET", path="/api/v0/charges/", handler=charges, group="billing_read", kind="charges"),
    Route(method="GET", path="/api/v1/invoices/", handler=invoices, group="billing_read", kind="invoices"),
    Route(method="POST", path="/api/v0/contracts/fetch/", handler=contracts, group="instance_read"),
)
