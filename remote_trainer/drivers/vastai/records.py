"""What the provider has written down: who asked for what, and what was billed. Pure.

Rules for editing: rows are untrusted, as in ``rows``; one that cannot be read is left out of the log, but never out of a bill.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from remote_trainer.drivers.vastai.rows import Row, cents, money, number, text
from remote_trainer.errors import Transient
from remote_trainer.ports import Charge

_RENTED = "api.ask_PUT"
_CLOCKS_S = 60.0  # so much the provider's clock may be behind ours


@dataclass(frozen=True, slots=True)
class Made:
    """An instance that a request made, by the audit log."""

    id: str
    label: str  # as it was asked for; empty if the log does not say


def made_since(log: Sequence[Row], since: float) -> Iterator[Made]:
    """Return what was rented from then on, seconds since the epoch; what has no time that can be read is taken for new."""
    seen: set[str] = set()
    for row in log:
        given, at = _arguments(row), number(row, "created_at")
        if text(row, "api_route") != _RENTED or 0 < at < since - _CLOCKS_S:
            continue
        contract = int(number(given, "contract_id"))
        if contract > 0 and str(contract) not in seen:
            seen.add(str(contract))
            yield Made(str(contract), text(given, "label"))


def _arguments(row: Row) -> Row:
    """Return what a request was given: an object, or the text of one."""
    given = row.get("args")
    try:
        given = json.loads(given) if isinstance(given, str) else given
    except (ValueError, RecursionError):
        return {}
    return given if isinstance(given, dict) else {}


def charges(rows: Sequence[Row]) -> list[Charge]:
    """Return what was billed, one for each instance and day of a bill's start."""
    amounts: defaultdict[tuple[str, datetime], Decimal] = defaultdict(Decimal)
    labels: dict[str, str] = {}
    for row in rows:
        kind, _, instance = text(row, "source").partition("-")
        start = number(row, "start")
        if kind != "instance" or not instance.isdecimal() or start <= 0:
            raise Transient("Vast.ai's list of charges has a row that cannot be read: not believed", driver="vastai")
        day = datetime.fromtimestamp(start, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        amounts[instance, day] += money(row, "amount")
        about = row.get("metadata")
        labels[instance] = (text(about, "label") if isinstance(about, dict) else "") or labels.get(instance, "")
    return [
        Charge(instance=instance, label=labels[instance], day=day, amount=cents(amount))
        for (instance, day), amount in sorted(amounts.items())
    ]


def whole_days(since: datetime, until: datetime) -> tuple[float, float]:
    """Return the first moment of the first day and the last one of the last, seconds since the epoch."""
    first, last = (at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0) for at in (since, until))
    return first.timestamp(), (last + timedelta(days=1)).timestamp() - 1
