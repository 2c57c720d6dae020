"""Tenants' accounts on the command line, and what jobs do to them: in this process, with the embedded store."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

import pytest

from remote_trainer.config import load
from remote_trainer.errors import Overdrawn, UsageError
from remote_trainer.model import Entry, EntryKind, Job, JobId, Limits
from remote_trainer.service.app import App
from remote_trainer.service.ledger import enqueue
from tests.support.inprocess import Outcome, runner
from tests.unit.life import a_job

T = TypeVar("T")
D = Decimal


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Outcome]:
    """Runs remote-trainer in a fresh installation; returns its exit code, stdout and stderr."""
    monkeypatch.setenv("HOME", str(tmp_path))

    return runner(monkeypatch, capsys)


def inside(work: Callable[[App], Awaitable[T]]) -> T:
    """Do something with the installation."""

    async def main() -> T:
        async with App(load()) as app:
            return await work(app)

    return asyncio.run(main())


def a_rented_job(name: str, max_cost: str, *, driver: str = "vastai", tenant: str = "ada") -> Job:
    return replace(a_job(limits=Limits(max_cost=D(max_cost))), id=JobId(name), name=name, driver=driver, tenant=tenant)


def document(outcome: Outcome) -> dict[str, Any]:
    assert outcome[0] == 0, outcome
    found: dict[str, Any] = json.loads(outcome[1])
    return found


def test_a_grant_opens_an_account(run: Callable[..., Outcome]) -> None:
    """Grants add up, below zero they take back, and all that happened is told."""
    assert "no tenant has an account" in run("ledger")[1]
    assert run("ledger", "grant", "ada", "10.50", "--note", "spring")[1] == "the account of ada holds 10.5000 $\n"
    assert document(run("ledger", "grant", "ada", "-0.5", "--json")) == {"tenant": "ada", "balance_usd": "10.000000"}
    assert run("ledger")[1].split() == ["tenant", "left", "ada", "10.0000"]
    shown = run("ledger", "--tenant", "ada")[1]
    assert "+10.5000" in shown and "spring" in shown and "-0.5000" in shown and "holds 10.0000 $" in shown
    told = document(run("ledger", "--tenant", "ada", "--json"))
    assert told["accounts"] == {"ada": "10.000000"}
    assert [(each["kind"], each["amount_usd"], each["note"]) for each in told["entries"]] == [
        ("grant", "10.50", "spring"),
        ("grant", "-0.5", ""),
    ]


@pytest.mark.parametrize("amount", ["much", "0", "NaN", "Infinity", "1e30", "0.0000001"])
def test_what_is_no_amount_is_refused(run: Callable[..., Outcome], amount: str) -> None:
    """Nothing is posted for it."""
    code, _, message = run("ledger", "grant", "ada", amount)
    assert (code, "US dollars" in message) == (2, True)
    assert document(run("ledger", "--json")) == {"accounts": {}}


def test_a_job_sets_aside_what_it_may_cost(run: Callable[..., Outcome]) -> None:
    """Where the tenant has an account and the job may rent; it has to say how much that is."""
    run("ledger", "grant", "ada", "5")
    queued = inside(lambda app: enqueue(app, a_rented_job("j1", "3")))
    assert queued.reserved == 3
    assert document(run("ledger", "--json"))["accounts"] == {"ada": "2.000000"}
    assert document(run("show", "j1", "--json"))["reserved_usd"] == "3.000000"
    with pytest.raises(UsageError, match="--max-cost"):
        inside(lambda app: enqueue(app, a_rented_job("j2", "0")))
    with pytest.raises(Overdrawn, match=r"ada holds 2\.00 \$.*3\.00 \$"):
        inside(lambda app: enqueue(app, a_rented_job("j3", "3")))
    borrowed = inside(lambda app: enqueue(app, a_rented_job("j4", "0", driver="local")))
    unlimited = inside(lambda app: enqueue(app, a_rented_job("j5", "0", tenant="bob")))
    assert (borrowed.reserved, unlimited.reserved) == (0, 0)
    assert document(run("ledger", "--json"))["accounts"] == {"ada": "2.000000"}


def test_show_tells_what_the_provider_billed(run: Callable[..., Outcome]) -> None:
    """Beside our own meter, once it was asked."""
    job = inside(lambda app: enqueue(app, a_rented_job("j1", "3")))
    assert document(run("show", "j1", "--json"))["billed_usd"] is None
    charge = Entry(id="c1", tenant="ada", kind=EntryKind.CHARGE, amount=D("0.25"), at=job.created_at, job=job.id, machine="i1")
    inside(lambda app: app.store.ledger.post([charge, replace(charge, id="c2")]))
    assert document(run("show", "j1", "--json"))["billed_usd"] == "0.50"
    assert "$0.50 by the provider so far" in run("show", "j1")[1]
    assert document(run("ledger", "--json")) == {"accounts": {}}
