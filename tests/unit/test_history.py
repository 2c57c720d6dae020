"""What a job's events tell of its machines."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

from remote_trainer.model import Attempt, Instance, Job, Offer, Place
from remote_trainer.worker.history import events_of
from tests.unit.life import NOW, a_job

BEGUN = Attempt(number=1, label="l", started_at=NOW)
SPOT = Offer(id="o1", driver="d", description="RTX 4090", spot=True, price_per_hour=Decimal("0.25"))
OTHER = Offer(id="o2", driver="d", price_per_hour=Decimal("0.40"))


def told(before: Attempt | None, after: Attempt, fallbacks: tuple[Place, ...] = ()) -> list[str]:
    """Return what is told of machines when an attempt was saved so."""
    job: Job = replace(a_job(), fallbacks=fallbacks)
    was, now = (replace(job, attempts=(each,) if each else ()) for each in (before, after))
    return [event.message for event in events_of(was, now, NOW) if event.kind == "machine"]


def test_what_is_asked_for_is_told_with_its_price() -> None:
    """All of a race; of a machine that is lent only where there was a choice."""
    asked = replace(BEGUN, offer=SPOT, rivals=(OTHER,), requested_at=NOW)
    assert told(BEGUN, asked) == ["asks test for RTX 4090 (spot) at $0.250 an hour and o2 at $0.400 an hour"]
    lent = replace(BEGUN, offer=Offer(id="own", driver="lab"), requested_at=NOW, place=1)
    assert told(BEGUN, replace(lent, place=0)) == []
    assert told(BEGUN, lent, (Place(driver="lab"),)) == ["asks lab for a machine"]
    assert told(asked, replace(asked, message="x")) == []


def test_what_came_of_it_is_told() -> None:
    """Offers that made nothing, machines that took another's place, and higher bids."""
    asked = replace(BEGUN, offer=SPOT, requested_at=NOW, instance=Instance(id="i1", label="l"))
    assert told(asked, replace(BEGUN, refused=("o1",))) == ["nothing came of offer o1"]
    assert told(asked, replace(asked, raised_at=NOW)) == ["bids more: RTX 4090 (spot) at $0.250 an hour"]
    other = replace(asked, instance=Instance(id="i2", label="l"))
    assert told(asked, replace(other, dropped=("i1",))) == ["instance i1 cannot serve: i2 takes its place"]
    assert told(asked, other) == ["instance i1 is not ready yet: i2 takes its place"]


def test_a_new_attempt_tells_nothing_of_the_last_one() -> None:
    """Its own requests are its own news."""
    last = replace(BEGUN, offer=SPOT, requested_at=NOW, refused=("o9",))
    first, second = replace(a_job(), attempts=(last,)), replace(a_job(), attempts=(last, replace(BEGUN, number=2)))
    assert [event for event in events_of(first, second, NOW) if event.kind == "machine"] == []
