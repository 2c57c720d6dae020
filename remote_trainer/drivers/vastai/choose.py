"""Which offers of Vast.ai can serve, and why the others cannot. Pure.

The provider's own filter is only a first sieve: it evaluates prices at another disk size and answers at most 64 rows, so every condition
is checked here again, and machines that are not wanted are named in the query, lest they crowd the others out.

Rules for editing: a condition is one line in ``_REFUSALS`` with its reason in words; the query asks for nothing that is not checked here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from remote_trainer.drivers.vastai.rows import Row, number, offer, text
from remote_trainer.drivers.vastai.speeds import kinds_of
from remote_trainer.model import Offer, Resources
from remote_trainer.ports import Refusal

_GB = 1000  # the provider counts MB
_CAP = 100  # and hundredths of a compute capability
ROWS_MAX = 64  # are shown, whatever is asked for
_DISK_MIN_GB = 10
_DISK_SHARE = 1.05  # of a rented disk, so much is there before we come: the file system's own, and what logging in needs


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What a profile wants of a machine, beyond what the tool needs."""

    gpu_names: tuple[str, ...] = ()  # kinds or classes of speeds.GPUS, or as the provider spells them; empty for any
    gpu_speeds: Mapping[str, float] = field(default_factory=dict)  # of one GPU, by names of the same sort
    regions: tuple[str, ...] = ()  # two-letter country codes; empty for any
    verified: bool = True
    min_reliability: float = 0.98
    min_download_mbit: float = 200.0
    min_cuda: float = 12.4
    min_compute_cap: float = 8.0  # the first generation that computes in bf16
    min_hours: float = 24.0  # so long the offer must last
    max_price: Decimal = Decimal(0)  # US dollars an hour with the disk; 0: none
    blocked_machines: frozenset[int] = frozenset()


def disk_to_rent(wanted_gb: int) -> int:
    """Return the size of disk to rent, and to pay, GB, so that as much as is wanted is free on it."""
    return max(_DISK_MIN_GB, math.ceil(wanted_gb * _DISK_SHARE))


def query(wishes: Wishes, wanted: Resources, *, spot: bool = False) -> dict[str, Any]:
    """Return the search that finds the candidates with the most performance for the money."""
    found: dict[str, Any] = {
        **wide_query(wanted, spot=spot),
        "order": [["dlperf_per_dphtotal", "desc"]],
        "direct_port_count": {"gte": 1},
        "disk_space": {"gte": disk_to_rent(wanted.disk_gb)},
        "gpu_ram": {"gte": wanted.vram_gb * _GB},
        "reliability2": {"gte": wishes.min_reliability},
        "inet_down": {"gte": wishes.min_download_mbit},
        "cuda_max_good": {"gte": wishes.min_cuda},
        "compute_cap": {"gte": round(wishes.min_compute_cap * _CAP)},
        "duration": {"gte": wishes.min_hours * 3600},
    }
    if wishes.verified:
        found["verified"] = {"eq": True}
    if wishes.gpu_names:
        found["gpu_name"] = {"in": sorted(kinds_of(wishes.gpu_names))}
    if wishes.regions:
        found["geolocation"] = {"in": list(wishes.regions)}
    if wishes.blocked_machines:
        found["machine_id"] = {"notin": sorted(wishes.blocked_machines)}
    return found


def wide_query(wanted: Resources, *, spot: bool = False) -> dict[str, Any]:
    """Return the search that finds the cheapest of all that has so many GPUs, whatever else is wished for."""
    return {
        "rentable": {"eq": True},
        "rented": {"eq": False},
        "external": {"eq": False},
        "verified": {"in": [True, False]},  # what is not said may mean that only verified ones are wanted
        "num_gpus": {"eq": max(1, wanted.gpus)},
        "order": [["dph_total", "asc"]],
        "type": "bid" if spot else "on-demand",
        "limit": ROWS_MAX,
        "allocated_storage": float(disk_to_rent(wanted.disk_gb)),
    }


def sieve(rows: Sequence[Row], wishes: Wishes, wanted: Resources, *, spot: bool = False) -> tuple[list[Offer], list[Refusal]]:
    """Return the offers that can serve, and what was refused, each once."""
    needed = replace(wanted, disk_gb=disk_to_rent(wanted.disk_gb))
    suitable: dict[str, Offer] = {}
    refused: dict[str, Refusal] = {}
    for row in rows:
        candidate = offer(row, disk_gb=needed.disk_gb, spot=spot, speeds=wishes.gpu_speeds)
        if candidate is None:
            continue
        found = ((condition, check(row, candidate, wishes, needed)) for condition, check in _REFUSALS.items())
        condition, reason = next(((condition, reason) for condition, reason in found if reason), ("", ""))
        if reason:
            refused[candidate.id] = Refusal(
                offer=candidate.id, description=candidate.description, condition=condition, reason=reason
            )
        else:
            suitable[candidate.id] = replace(candidate, most_per_hour=wishes.max_price)
    return list(suitable.values()), list(refused.values())


_Check = Callable[[Row, Offer, Wishes, Resources], str]


def _at_least(field: str, what: str, least: Callable[[Wishes, Resources], float]) -> _Check:
    def check(row: Row, _: Offer, wishes: Wishes, wanted: Resources) -> str:
        have, need = number(row, field), least(wishes, wanted)
        return f"{what} {have:g}, {need:g} wanted" if have < need else ""

    return check


def _as_large(name: str) -> _Check:
    def check(row: Row, candidate: Offer, wishes: Wishes, wanted: Resources) -> str:
        there, need = getattr(candidate.resources, name), getattr(wanted, name)
        return f"{name} {there}, {need} wanted" if there < need else ""

    return check


def _gpus(row: Row, candidate: Offer, wishes: Wishes, wanted: Resources) -> str:
    there, need = candidate.resources.gpus, max(1, wanted.gpus)
    return f"{there} GPUs, {need} wanted" if there != need else ""


def _gpu_name(row: Row, candidate: Offer, wishes: Wishes, wanted: Resources) -> str:
    name = text(row, "gpu_name")
    unwanted = wishes.gpu_names and name not in kinds_of(wishes.gpu_names)
    return f"a {name}, which the profile does not name" if unwanted else ""


def _compute_cap(row: Row, candidate: Offer, wishes: Wishes, wanted: Resources) -> str:
    have = number(row, "compute_cap") / _CAP
    return f"compute capability {have:g}, {wishes.min_compute_cap:g} wanted" if have < wishes.min_compute_cap else ""


def _region(row: Row, candidate: Offer, wishes: Wishes, wanted: Resources) -> str:
    place = text(row, "geolocation")
    return f"in {place or 'an unknown place'}" if wishes.regions and place.rpartition(", ")[2] not in wishes.regions else ""


def _verified(row: Row, candidate: Offer, wishes: Wishes, wanted: Resources) -> str:
    word = text(row, "verification")
    return (word or "not verified") if wishes.verified and word != "verified" else ""


def _blocked(row: Row, candidate: Offer, wishes: Wishes, wanted: Resources) -> str:
    return "the profile does not want this machine" if int(number(row, "machine_id")) in wishes.blocked_machines else ""


def _taken(row: Row, candidate: Offer, wishes: Wishes, wanted: Resources) -> str:
    return "taken" if row.get("rentable") is False or row.get("rented") is True else ""


def _price(row: Row, candidate: Offer, wishes: Wishes, wanted: Resources) -> str:
    above = wishes.max_price and candidate.price_per_hour > wishes.max_price
    return f"{candidate.price_per_hour:.3f} $/h, {wishes.max_price} at most" if above else ""


#: By the name of the option, or of what the tool needs.
_REFUSALS: Mapping[str, _Check] = {
    "gpus": _gpus,
    "vram_gb": _as_large("vram_gb"),
    "disk_gb": _as_large("disk_gb"),
    "ram_gb": _as_large("ram_gb"),
    "gpu_names": _gpu_name,
    "regions": _region,
    "verified": _verified,
    "blocked_machines": _blocked,
    "taken": _taken,
    "max_price": _price,
    "min_reliability": _at_least("reliability2", "reliability", lambda wishes, _: wishes.min_reliability),
    "min_download_mbit": _at_least("inet_down", "download, Mbit/s,", lambda wishes, _: wishes.min_download_mbit),
    "min_cuda": _at_least("cuda_max_good", "CUDA", lambda wishes, _: wishes.min_cuda),
    "min_compute_cap": _compute_cap,
    "direct ports": _at_least("direct_port_count", "direct ports", lambda *_: 1),
    "min_hours": _at_least("duration", "offered for seconds", lambda wishes, _: wishes.min_hours * 3600),
}
