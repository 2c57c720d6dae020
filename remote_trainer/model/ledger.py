"""What is written down about money. Rules for editing: as in the package's docstring."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum

from remote_trainer.model.basics import JobId


class EntryKind(StrEnum):
    """What an entry of the ledger is for."""

    GRANT = "grant"  # given to the tenant, or taken back, by whoever runs the installation
    RESERVE = "reserve"  # set aside when a job was submitted: all that it may cost
    SETTLE = "settle"  # the rest of it, given back when the job ended
    REFUND = "refund"  # given back besides: what was lost by no fault of the tenant's
    CHARGE = "charge"  # what the provider billed for one of the tenant's machines: told, not counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of a tenant's account; written once, never changed. ``seq`` is given by the store and grows within a tenant."""

    id: str  # the same for the same event, whoever writes it: a second one changes nothing
    tenant: str
    kind: EntryKind
    amount: Decimal  # US dollars, at most six digits behind the point; what a charge is, or how the balance changes
    at: datetime
    job: JobId | None = None
    machine: str = ""  # the provider's id of the instance that a charge is for
    note: str = ""  # for people
    seq: int = 0

    @property
    def moves(self) -> Decimal:
        """By how much the tenant's balance changes."""
        return Decimal(0) if self.kind is EntryKind.CHARGE else self.amount
