"""What a person should later read about a change of a job: its events.

Rules for editing: pure; one generator for each kind of news, kind, sentence and data. Notes are for what is waited for, and told once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import Any

from remote_trainer.model import Attempt, Event, Job, Offer
from remote_trainer.policy import Cost, cost_of


def events_of(before: Job, after: Job, now: datetime) -> list[Event]:
    """Return what a person should later read about this change."""
    news = (*_machine_news(before, after), *_step_news(before, after), *_cost_news(before, after))
    found = [Event(at=now, kind=kind, message=message, data=data) for kind, message, data in news]
    if after.phase is not before.phase:
        judged = after.attempt is not None and after.attempt.verdict is not None
        new = judged and not (before.attempt is not None and before.attempt.verdict is not None)
        why = after.message or (after.attempt.message if new and after.attempt else "")
        message = f"{before.phase} → {after.phase}" + (f": {why}" if why else "")
        data = {"from": before.phase, "to": after.phase, "attempt": len(after.attempts)}
        found.append(Event(at=now, kind="phase", message=message, data=data))
    if after.note and after.note != before.note:
        found.append(Event(at=now, kind="note", message=after.note))
    return found


def _step_news(before: Job, after: Job) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield what became of step runs: kind, sentence, data."""
    same = before.attempt is not None and len(before.attempts) == len(after.attempts)
    known = {run.key: run for run in before.attempt.steps} if same and before.attempt else {}
    for run in after.attempt.steps if after.attempt else ():
        old = known.get(run.key)
        if old is None:
            yield "step", f"step {run.key} starts", {"step": run.key}
        elif run.state is not old.state:
            code = "" if run.exit_code is None else f" with code {run.exit_code}"
            yield "step", f"step {run.key} {run.state}{code}", {"step": run.key, "state": run.state, "exit_code": run.exit_code}
        elif run.stop_at is not None and old.stop_at is None:
            yield "stop", f"stopping {run.key}: {run.why}", {"step": run.key}


def _cost_news(before: Job, after: Job) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield what an attempt cost whose machine was given back, if it was rented: kind, sentence, data."""
    ended = len([attempt for attempt in before.attempts if attempt.ended_at is not None])
    for attempt in after.attempts[ended:]:
        cost = cost_of(attempt, attempt.ended_at) if attempt.ended_at is not None else Cost()
        if cost.total:
            parts = {name: f"{getattr(cost, name):.6f}" for name in ("machine", "disk", "traffic")}
            said = ", ".join(f"{name} ${Decimal(part):.4f}" for name, part in parts.items())
            yield "cost", f"attempt {attempt.number} cost ${cost.total:.4f}: {said}", {"attempt": attempt.number, **parts}


def _machine_news(before: Job, after: Job) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield what is rented, at what price, and what came of it in vain."""
    attempt = after.attempt
    if attempt is None:
        return
    same = before.attempt is not None and before.attempt.number == attempt.number
    was = (
        before.attempt if same and before.attempt is not None else replace(attempt, requested_at=None, refused=(), raised_at=None)
    )
    data = {"attempt": attempt.number, "driver": after.place.driver}
    if attempt.requested_at is not None and attempt.requested_at != was.requested_at:
        asked = [_priced(offer) for offer in (attempt.offer, *attempt.rivals) if offer is not None and offer.price_per_hour]
        if asked or after.fallbacks:
            yield "machine", f"asks {after.place.driver} for {' and '.join(asked) or 'a machine'}", data
    for offer_id in attempt.refused[len(was.refused) :]:
        yield "machine", f"nothing came of offer {offer_id}", {**data, "offer": offer_id}
    if attempt.raised_at != was.raised_at and attempt.offer is not None:
        yield "machine", f"bids more: {_priced(attempt.offer)}", {**data, "offer": attempt.offer.id}
    yield from _changed(was, attempt, data)


def _changed(was: Attempt, attempt: Attempt, data: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    mine, before = attempt.instance, was.instance
    if mine is not None and before is not None and mine.id != before.id:
        why = "cannot serve" if before.id in attempt.dropped else "is not ready yet"
        yield "machine", f"instance {before.id} {why}: {mine.id} takes its place", {**data, "instance": mine.id}


def _priced(offer: Offer) -> str:
    """Return an offer and its price in words."""
    spot = " (spot)" if offer.spot else ""
    return f"{offer.description or offer.id}{spot} at ${offer.price_per_hour:.3f} an hour"
