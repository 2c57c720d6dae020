"""``remote-trainer instances|reap``: what is rented, and giving back what is nobody's.

Rules for editing: whose an instance is, is the service's word; nothing is asked for that was not shown before.
"""

from __future__ import annotations

import sys
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any

import typer

from remote_trainer.cli import out, outcome, session
from remote_trainer.cli.options import Json
from remote_trainer.errors import UsageError

if TYPE_CHECKING:
    from remote_trainer.service.app import App
    from remote_trainer.service.rented import Holdings
    from remote_trainer.worker.holdings import Holding

_Drivers = Annotated[
    list[str] | None,
    typer.Option(
        "--driver", metavar="NAME", help="Ask only this driver or profile; repeat it for more. Default: all of the jobs"
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("instances")(instances)
    app.command("reap")(reap)


def instances(driver: _Drivers = None, as_json: Json = False) -> None:
    """List everything this installation has rented, and which job claims it."""
    from remote_trainer.service import rented

    async def work(app: App) -> None:
        seen = await rented.look_around(app, driver or ())
        rows = [_document(app, each) for each in seen.found]
        if not as_json:
            _show(rows, seen)
        _end(seen, {"instances": rows}, as_json=as_json)

    session.run(work)


def reap(
    driver: _Drivers = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be destroyed")] = False,
    at_once: Annotated[bool, typer.Option("--now", help="Do not wait until it has been nobody's for a while")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask")] = False,
    as_json: Json = False,
) -> None:
    """Destroy what this installation has rented and no live job claims; asks first."""
    from remote_trainer.service import rented

    async def look(app: App) -> tuple[Holdings, list[dict[str, Any]], list[dict[str, Any]]]:
        seen = await rented.look_around(app, driver or ())
        due = [each.instance.label for each in rented.due(app, seen.found, at_once=at_once)]
        nobodys = [_document(app, each) for each in seen.found if not each.claimed]
        return seen, [row for row in nobodys if row["label"] in due], [row for row in nobodys if row["label"] not in due]

    seen, due, waiting = session.run(look)
    document: dict[str, Any] = {"due": due, "waiting": waiting, "asked": []}
    if not as_json:
        _propose(due, waiting)
    if dry_run or not due or not _agreed(len(due), yes=yes, as_json=as_json):
        return _end(seen, document, as_json=as_json)

    async def destroy(app: App) -> Holdings:
        labels = frozenset(row["label"] for row in due)
        return await rented.give_back_unclaimed(app, driver or (), labels, at_once=at_once)

    done = session.run(destroy)
    document["asked"] = [each.instance.id for each in done.found]
    if not as_json:
        out.line(f"asked for the end of {out.plural(len(done.found), 'instance')}; see it with: remote-trainer instances")
    return _end(done, document, as_json=as_json)


def _agreed(count: int, *, yes: bool, as_json: bool) -> bool:
    """Ask whether to go on; without a person at the terminal that must have been said before."""
    if yes:
        return True
    if as_json or not sys.stdin.isatty():
        raise UsageError(f"{out.plural(count, 'instance')} would be destroyed: say --yes to do so, or --dry-run to look")
    return typer.confirm(f"destroy {out.plural(count, 'instance')}?", err=True)


def _end(seen: Holdings, document: dict[str, Any], *, as_json: bool) -> None:
    """Print the document; a driver that could not be asked gives the exit code, since something may be missing."""
    if as_json and seen.faults:
        outcome.fail(seen.faults[0], {**document, "faults": [str(fault) for fault in seen.faults]})
    if as_json:
        out.document(document)
    for fault in seen.faults[1:]:
        out.problem(f"error: {fault}")
    if seen.faults:
        raise seen.faults[0]


def _document(app: App, holding: Holding) -> dict[str, Any]:
    instance = holding.instance
    created = instance.created_at
    return {
        "id": instance.id,
        "driver": holding.driver.name,
        "label": instance.label,
        "job": holding.job_id,
        "attempt": holding.attempt,
        "state": instance.state.value,
        "message": instance.message,
        "price_per_hour_usd": str(instance.price_per_hour),
        "created_at": created.isoformat() if created else None,
        "age_s": round((app.clock.now() - created).total_seconds()) if created else None,
        "claimed": holding.claimed,
        "alarm": holding.overdue or holding.due(app.clock.now()),
        "why": holding.why,
    }


def _show(rows: list[dict[str, Any]], seen: Holdings) -> None:
    if not seen.drivers and not seen.faults:
        out.line("no job of this installation has rented anything; ask a driver by name with --driver")
        return
    if rows:
        _table(rows)
    nobodys = sum(not row["claimed"] for row in rows)
    hourly = sum((Decimal(row["price_per_hour_usd"]) for row in rows), Decimal(0))
    out.line(f"{out.plural(len(rows), 'instance')} at {', '.join(seen.drivers) or 'no driver'}, {hourly:.3f} $/h")
    overdue = [row["id"] for row in rows if row["alarm"] and row["claimed"]]
    if overdue:
        out.line(
            f"ALARM: not gone although their end is asked for again and again: {', '.join(overdue)}; destroy them at the provider"
        )
    if nobodys:
        out.line(f"{nobodys} of them nobody's: every worker gives such back after a while, and so does: remote-trainer reap")


def _propose(due: list[dict[str, Any]], waiting: list[dict[str, Any]]) -> None:
    if due:
        out.line("nobody's, to be destroyed:")
        _table(due)
    if waiting:
        out.line("nobody's, but not for long enough to be sure (--now destroys them too):")
        _table(waiting)
    if not due and not waiting:
        out.line("nothing is rented that nobody claims")


def _table(rows: list[dict[str, Any]]) -> None:
    out.table(("instance", "driver", "label", "job", "try", "state", "$/h", "age", "claimed", "why"), [_row(row) for row in rows])


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["id"],
        row["driver"],
        row["label"],
        row["job"] or "?",
        str(row["attempt"] or "?"),
        row["state"],
        f"{Decimal(row['price_per_hour_usd']):.3f}",
        "?" if row["age_s"] is None else out.duration(row["age_s"]),
        "yes" if row["claimed"] else "no",
        row["why"],
    )
