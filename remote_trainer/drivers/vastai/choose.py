"""Which offers of Vast.ai can serve, and why the others cannot. Pure.

The provider's own filter is only a first sieve: it evaluates prices at another disk size and answers at most 64 rows, so every condition
is checked here again, and machines that are not wanted are named in the query, lest they crowd the others out.

Rules for editing: a condition is one line in ``_REFUSALS`` with its reason in words; the query asks for nothing that is not checked here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from remote_trainer.drivers.vastai.rows import Row, money, number, offer, text
from remote_trainer.model import Offer, Resources

_GB = 1000  # the provider counts MB


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What a profile wants of a machine, beyond what the tool needs."""

    gpu_names: tuple[str, ...] = ()  # as the provider spells them: "RTX 4090"; empty for any
    regions: tuple[str, ...] = ()  # two-letter country codes; empty for any
    verified: bool = True
    min_reliability: float = 0.98
    min_download_mbit: float = 200.0
    min_cuda: float = 12.4
    min_hours: float = 24.0  # so long the offer must last
    max_price: Decimal = Decimal(0)  # US dollars an hour with the disk; 0: none
    blocked_machines: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Refused:
    """An offer that cannot serve, and why."""

    offer: str
    description: str
    reason: str


def query(wishes: Wishes, wanted: Resources) -> dict[str, Any]:
    """Return the search that finds the cheapest candidates."""
    found: dict[str, Any] = {
        "rentable": {"eq": True},
        "rented": {"eq": False},
        "external": {"eq": False},
        "num_gpus": {"eq": max(1, wanted.gpus)},
        "direct_port_count": {"gte": 1},
        "disk_space": {"gte": wanted.disk_gb},
        "gpu_ram": {"gte": wanted.vram_gb * _GB},
        "reliability2": {"gte": wishes.min_reliability},
        "inet_down": {"gte": wishes.min_download_mbit},
        "cuda_max_good": {"gte": wishes.min_cuda},
        "duration": {"gte": wishes.min_hours * 3600},
        "order": [["dph_total", "asc"]],
        "type": "on-demand",
        "limit": 64,
        "allocated_storage": float(wanted.disk_gb),
    }
    if wishes.verified:
        found["verified"] = {"eq": True}
    if wishes.gpu_names:
        found["gpu_name"] = {"in": list(wishes.gpu_names)}
    if wishes.regions:
        found["geolocation"] = {"in": list(wishes.regions)}
    if wishes.blocked_machines:
        found["machine_id"] = {"notin": sorted(wishes.blocked_machines)}
    return found


def sieve(rows: Sequence[Row], wishes: Wishes, wanted: Resources) -> tuple[list[Offer], list[Refused]]:
    """Return the offers that can serve, each once, and what was refused."""
    suitable: dict[str, Offer] = {}
    refused: list[Refused] = []
    for row in rows:
        candidate = offer(row, disk_gb=wanted.disk_gb)
        if candidate is None:
            continue
        reason = next((reason for check in _REFUSALS if (reason := check(row, candidate, wishes, wanted))), "")
        if reason:
            refused.append(Refused(candidate.id, candidate.description, reason))
        else:
            suitable[candidate.id] = candidate
    return list(suitable.values()), refused


_Check = Callable[[Row, Offer, Wishes, Resources], str]


def _at_least(field: str, what: str, least: Callable[[Wishes, Resources], float]) -> _Check:
    def check(row: Row, _: Offer, wishes: Wishes, wanted: Resources) -> str:
        have, need = number(row, field), least(wishes, wanted)
        return f"{what} {have:g}, {need:g} wanted" if have < need else ""

    return check


def _size(row: Row, candidate: Offer, wishes: Wishes, wanted: Resources) -> str:
    have: Mapping[str, int] = {name: getattr(candidate.resources, name) for name in ("vram_gb", "disk_gb", "ram_gb")}
    if candidate.resources.gpus != max(1, wanted.gpus):
        return f"{candidate.resources.gpus} GPUs, {max(1, wanted.gpus)} wanted"
    return next(
        (f"{name} {there}, {getattr(wanted, name)} wanted" for name, there in have.items() if there < getattr(wanted, name)), ""
    )


def _kind(row: Row, candidate: Offer, wishes: Wishes, wanted: Resources) -> str:
    if wishes.gpu_names and text(row, "gpu_name") not in wishes.gpu_names:
        return f"a {text(row, 'gpu_name')}, which the profile does not name"
    if wishes.regions and text(row, "geolocation").rpartition(", ")[2] not in wishes.regions:
        return f"in {text(row, 'geolocation') or 'an unknown place'}"
    if wishes.verified and text(row, "verification") != "verified":
        return text(row, "verification") or "not verified"
    if int(number(row, "machine_id")) in wishes.blocked_machines:
        return "the machine failed us lately"
    if row.get("rentable") is False or row.get("rented") is True:
        return "taken"
    return ""


def _price(row: Row, candidate: Offer, wishes: Wishes, wanted: Resources) -> str:
    if wishes.max_price and candidate.price_per_hour > wishes.max_price:
        return f"{candidate.price_per_hour:.3f} $/h, {wishes.max_price} at most"
    return "" if money(row, "dph_base") > 0 else "no price"


_REFUSALS: tuple[_Check, ...] = (
    _size,
    _kind,
    _price,
    _at_least("reliability2", "reliability", lambda wishes, _: wishes.min_reliability),
    _at_least("inet_down", "download, Mbit/s,", lambda wishes, _: wishes.min_download_mbit),
    _at_least("cuda_max_good", "CUDA", lambda wishes, _: wishes.min_cuda),
    _at_least("direct_port_count", "direct ports", lambda *_: 1),
    _at_least("duration", "offered for seconds", lambda wishes, _: wishes.min_hours * 3600),
)
