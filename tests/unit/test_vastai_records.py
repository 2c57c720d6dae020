"""What the provider has written down: its audit log and its bills."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from remote_trainer.drivers.vastai.guards import first_slot
from remote_trainer.drivers.vastai.records import Made, charges, made_since, whole_days
from remote_trainer.errors import Transient
from remote_trainer.ports import Charge

NOON = 1_800_014_400.0  # 2027-01-15 12:00 UTC
DAY = datetime(2027, 1, 15, tzinfo=UTC)


def asked(contract: object, at: object = NOON, route: str = "api.ask_PUT", **args: Any) -> dict[str, Any]:
    return {"created_at": at, "api_route": route, "args": {"contract_id": contract, **args}, "api_key_id": 1}


def billed(source: str, amount: object, start: object = NOON, label: object = "rt-a") -> dict[str, Any]:
    return {
        "start": start,
        "end": NOON + 60,
        "source": source,
        "type": "instance",
        "amount": amount,
        "metadata": {"label": label},
    }


def test_only_requests_to_rent_since_the_claim_count() -> None:
    """With a minute for clocks that differ; each instance once; rows that cannot be read are left out."""
    log = [
        asked(1, NOON - 61),
        asked(2, NOON - 59, label="rt-a"),
        asked(3, route="api.instance_DELETE"),
        asked(None),
        asked("4"),
        asked(4),
        {"api_route": "api.ask_PUT", "created_at": NOON, "args": None},
        {"api_route": "api.ask_PUT", "created_at": NOON, "args": "{"},
        {},
    ]
    assert list(made_since(log, NOON)) == [Made("2", "rt-a"), Made("4", "")]


def test_a_log_of_another_shape_hides_nothing() -> None:
    """A time that cannot be read is no reason to believe that nothing was rented; arguments may be text."""
    log = [asked(1, "2027-01-15T12:00:00Z"), {**asked(2), "args": '{"contract_id": 2, "label": "rt-a"}'}]
    assert list(made_since(log, NOON)) == [Made("1", ""), Made("2", "rt-a")]


def test_what_was_billed_is_told_by_instance_and_day() -> None:
    """Several rows of a day are one charge; a label that one of them lacks is known from another."""
    found = charges(
        [billed("instance-7", 0.25), billed("instance-7", 0.5, NOON + 3600, label=None), billed("instance-7", 1, NOON + 86400)]
    )
    assert found == [
        Charge(instance="7", label="rt-a", day=DAY, amount=Decimal("0.75")),
        Charge(instance="7", label="rt-a", day=datetime(2027, 1, 16, tzinfo=UTC), amount=Decimal(1)),
    ]


@pytest.mark.parametrize("row", [billed("volume-7", 1), billed("instance-x", 1), billed("instance-7", 1, start=None), {}])
def test_a_bill_that_cannot_be_read_is_not_believed(row: dict[str, Any]) -> None:
    """A row left out would be money left out."""
    with pytest.raises(Transient):
        charges([row])


def test_bills_are_asked_for_by_whole_days() -> None:
    """From the first moment of the first to the last of the last."""
    since, until = whole_days(datetime(2027, 1, 15, 12, tzinfo=UTC), datetime(2027, 1, 16, 1, tzinfo=UTC))
    assert datetime.fromtimestamp(since, UTC) == DAY
    assert datetime.fromtimestamp(until, UTC) == datetime(2027, 1, 16, 23, 59, 59, tzinfo=UTC)


@pytest.mark.parametrize(
    ("until", "now", "slot"),
    [
        (NOON, NOON - 60, NOON),
        (NOON + 1, NOON, NOON + 3600),
        (NOON + 3599, NOON, NOON + 3600),
        (NOON - 86400, NOON + 5, NOON + 3600),
    ],
)
def test_the_provider_acts_at_the_first_full_hour_after_the_time(until: float, now: float, slot: float) -> None:
    """The start that is asked for lies in the hour that begins then; what is over already is due at the next one."""
    assert first_slot(until, now) == slot + 1
