"""What things have cost, as the provider tells it: by hour and kind, late, for the days that are asked for.

Rules for editing: amounts are US dollars; nothing here bills, it only tells what was billed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from remote_trainer.testing.vast.provider import Provider

_HOUR_S, _DAY_S = 3600, 86_400
GPU, DISK, DOWN, UP = "gpu", "disk", "bwd", "bwu"


@dataclass(slots=True)
class Meter:
    """What one thing has cost, by hour and kind: amount, and seconds or GB."""

    parts: dict[tuple[int, str], tuple[Decimal, float]] = field(default_factory=dict)
    total: Decimal = Decimal(0)

    def add(self, kind: str, since: float, until: float, per_hour: Decimal) -> Decimal:
        """Count a stretch of time at a price; returns what it costs."""
        before = self.total
        while since < until and per_hour:
            end = min(until, (since // _HOUR_S + 1) * _HOUR_S)
            self.count(kind, since, Decimal(str(end - since)) * per_hour / _HOUR_S, end - since)
            since = end
        return self.total - before

    def count(self, kind: str, at: float, amount: Decimal, quantity: float) -> None:
        """Count an amount."""
        hour = int(at // _HOUR_S)
        known = self.parts.get((hour, kind), (Decimal(0), 0.0))
        self.parts[hour, kind] = (known[0] + amount, known[1] + quantity)
        self.total += amount

    def of(self, kind: str, hours: range | None = None) -> tuple[Decimal, float]:
        """Return what a kind has cost, in some hours or in all."""
        found = [part for (hour, name), part in self.parts.items() if name == kind and (hours is None or hour in hours)]
        return sum((amount for amount, _ in found), Decimal(0)), sum(quantity for _, quantity in found)

    @property
    def gpu(self) -> Decimal:
        """Return what the GPU has cost."""
        return self.of(GPU)[0]

    @property
    def disk(self) -> Decimal:
        """Return what the disk has cost."""
        return self.of(DISK)[0]

    @property
    def gpu_s(self) -> float:
        """Return for how long the GPU was paid."""
        return self.of(GPU)[1]

    @property
    def disk_s(self) -> float:
        """Return for how long the disk was paid."""
        return self.of(DISK)[1]


def charges(sim: Provider, since: float, until: float, types: Sequence[str]) -> list[dict[str, Any]]:
    """Return what was billed on some days: a row for each thing and day."""
    first, last = int(since // _DAY_S), int(until // _DAY_S)
    told = told_until(sim)
    rows = []
    for day in range(first, last + 1):
        hours = range(day * 24, max(day * 24, min(day * 24 + 24, told)))
        rows += [row for row in _rows(sim, hours, types) if row["items"]]
    return rows


def told_until(sim: Provider) -> int:
    """Return the first hour, counted from the epoch, that the list of charges does not show yet."""
    if sim.charges_lag_s <= 0:
        return int(sim.now // _HOUR_S) + 1
    return int((sim.now - sim.charges_lag_s) // _HOUR_S) + 1


def _rows(sim: Provider, hours: range, types: Sequence[str]) -> Iterator[dict[str, Any]]:
    if "instance" in types:
        for each in (*sim.past, *sim.live.values()):
            storage = each.disk_gb * float(each.offer.get("storage_cost") or 0)
            texts = {GPU: "{:.3f} hours at $" + f"{each.gpu_price}/hour", DISK: "{:.3f} hours at $" + f"{storage:.3f}/month"}
            prices = {kind: float(each.offer.get(name) or 0) for kind, name in ((DOWN, "inet_down_cost"), (UP, "inet_up_cost"))}
            texts |= {kind: "{:.3f} GB at $" + f"{price}/GB" for kind, price in prices.items()}
            yield _row("instance", each.id, each.label, each.meter, hours, texts)
    if "volume" in types:
        for volume in sim.volumes.every():
            text = {DISK: "{:.3f} hours of " + f"{volume.size_gb} GB"}
            yield _row("volume", volume.id, volume.label, volume.meter, hours, text)


def _row(kind: str, number: int, label: str, meter: Meter, hours: range, texts: dict[str, str]) -> dict[str, Any]:
    there = [hour for hour, _ in meter.parts if hour in hours]
    start, end = (min(there) * _HOUR_S, (max(there) + 1) * _HOUR_S) if there else (0, 0)
    items: list[dict[str, Any]] = []
    for part, text in texts.items():
        amount, quantity = meter.of(part, hours)
        if amount:
            told = text.format(quantity / (_HOUR_S if part in (GPU, DISK) else 1))
            facts = {"type": part, "source": None, "description": told, "amount": round(float(amount), 6)}
            items.append({**facts, "start": start, "end": end, "items": []})
    return {
        "start": start,
        "end": end,
        "type": kind,
        "source": f"{kind}-{number}",
        "description": f"{kind.title()} {number} Charges",
        "amount": round(sum(float(item["amount"]) for item in items), 6),
        "metadata": {"label": label or None, "template_id": None},
        "items": items,
    }
