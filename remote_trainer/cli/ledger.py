"""``remote-trainer ledger``: tenants' accounts, and granting.

Rules for editing: as in jobs.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Annotated, Any

import typer

from remote_trainer.cli import out, session
from remote_trainer.cli.options import Json
from remote_trainer.errors import UsageError

if TYPE_CHECKING:
    from remote_trainer.model import Entry
    from remote_trainer.service.app import App


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(invoke_without_command=True, callback=show)
    group.command("grant", context_settings={"ignore_unknown_options": True})(grant)  # an amount may be negative
    app.add_typer(group, name="ledger")


def show(
    context: typer.Context,
    tenant: Annotated[str | None, typer.Option("--tenant", help="All that happened to this tenant's account")] = None,
    as_json: Json = False,
) -> None:
    """Tenants' accounts: what each has left, or all that happened to one."""
    from remote_trainer.service import ledger

    async def work(app: App) -> None:
        left = await ledger.balances(app)
        found = await ledger.entries(app, tenant) if tenant is not None else []
        if as_json:
            document: dict[str, Any] = {"accounts": {name: str(amount) for name, amount in left.items()}}
            out.document(document if tenant is None else {**document, "entries": [_document(each) for each in found]})
        elif tenant is None:
            _show_accounts(left)
        else:
            _show_entries(tenant, found, left.get(tenant))

    if context.invoked_subcommand is None:
        session.run(work)


def grant(
    tenant: Annotated[str, typer.Argument(metavar="TENANT", help="Whose account")],
    amount: Annotated[str, typer.Argument(metavar="AMOUNT", help="US dollars; below zero to take some back")],
    note: Annotated[str, typer.Option("--note", metavar="TEXT", help="What it is for")] = "",
    as_json: Json = False,
) -> None:
    """Add to a tenant's account. The first grant opens it: from then on the tenant's jobs are paid from it."""
    from remote_trainer.service import ledger

    try:
        dollars = Decimal(amount)
    except InvalidOperation:
        raise UsageError(f"{amount!r} is no amount of US dollars") from None

    async def work(app: App) -> None:
        left = await ledger.grant(app, tenant, dollars, note)
        if as_json:
            out.document({"tenant": tenant, "balance_usd": str(left)})
        else:
            out.line(f"the account of {tenant} holds {left:.4f} $")

    session.run(work)


def _show_accounts(left: Mapping[str, Decimal]) -> None:
    if not left:
        out.line("no tenant has an account, so every tenant may spend; open one with: remote-trainer ledger grant TENANT AMOUNT")
        return
    out.table(("tenant", "left"), [(name, f"{amount:.4f}") for name, amount in left.items()])


def _show_entries(tenant: str, found: list[Entry], left: Decimal | None) -> None:
    rows = [
        (f"{each.at:%Y-%m-%d %H:%M}", each.kind.value, f"{each.amount:+.4f}", each.job or "", each.machine, each.note)
        for each in found
    ]
    if rows:
        out.table(("at (UTC)", "kind", "amount", "job", "machine", "note"), rows)
    out.line(f"{tenant} has no account" if left is None else f"the account of {tenant} holds {left:.4f} $")


def _document(entry: Entry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "seq": entry.seq,
        "at": entry.at.isoformat(),
        "kind": entry.kind.value,
        "amount_usd": str(entry.amount),
        "job": entry.job,
        "machine": entry.machine or None,
        "note": entry.note,
    }
