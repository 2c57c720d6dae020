"""Tenants' accounts: who has how much, what happened to it, and what a new job sets aside.

Rules for editing: what a job pays is decided in ``policy.accounts``; here it is only asked for, shown, and granted.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal

from remote_trainer.errors import UsageError
from remote_trainer.model import Entry, EntryKind, Job
from remote_trainer.policy import reservation
from remote_trainer.service.app import App

_LARGEST = Decimal(10**9)
_MICRO = Decimal("0.000001")


async def enqueue(app: App, job: Job) -> Job:
    """Queue a job, with what it may cost set aside if its tenant has an account and it may rent; returns it as it was queued."""
    balance = await app.store.ledger.balance(job.tenant)
    if balance is not None and await _may_rent(app, job):
        if not job.limits.max_cost:
            raise UsageError(
                f"{job.tenant} has an account, with {balance:.2f} $ left: say with --max-cost what the job may cost; so much is set "
                "aside, and what is not used comes back when it ends"
            )
        job = replace(job, reserved=job.limits.max_cost.quantize(_MICRO))
    await app.store.submit(job, reservation(job))
    return job


async def _may_rent(app: App, job: Job) -> bool:
    for place in job.places:
        driver = app.driver(place.driver, place.options)
        await driver.close()
        if not driver.abilities.borrowed:
            return True
    return False


async def grant(app: App, tenant: str, amount: Decimal, note: str) -> Decimal:
    """Add to a tenant's account, which opens it if need be, or take from it; returns what it holds then."""
    if not amount.is_finite() or not amount or abs(amount) > _LARGEST or amount != amount.quantize(_MICRO):
        raise UsageError(f"{amount} cannot be granted: give US dollars with at most six digits behind the point, and not 0")
    entry = Entry(
        id=f"grant/{secrets.token_hex(8)}", tenant=tenant, kind=EntryKind.GRANT, amount=amount, at=app.clock.now(), note=note
    )
    await app.store.ledger.post([entry])
    return await app.store.ledger.balance(tenant) or Decimal(0)


async def balances(app: App) -> Mapping[str, Decimal]:
    """Return what every tenant with an account has left."""
    return await app.store.ledger.balances()


async def entries(app: App, tenant: str) -> list[Entry]:
    """Return everything that happened to a tenant's account, oldest first."""
    found: list[Entry] = []
    while more := await app.store.ledger.entries(tenant, after=found[-1].seq if found else 0):
        found += more
    return found


async def billed(app: App, job: Job) -> Decimal | None:
    """Return what the provider has billed for a job's machines so far, as far as it was asked; None if it was not."""
    found = await app.store.ledger.entries(job.tenant, job=job.id)
    charges = [entry.amount for entry in found if entry.kind is EntryKind.CHARGE]
    return sum(charges, Decimal(0)) if charges else None
