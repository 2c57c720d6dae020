"""Volumes: disk of one machine that outlives its instances, and is paid until it is deleted.

Rules for editing: as in ``instances``; whole GB, on the machine of its offer only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from remote_trainer.testing.vast.market import MONTH_H, Row

OFFER_IDS = 500_000  # a volume's offer has its machine's number and so much more
HELD_S = 30.0  # so long after its instance's end a volume can be deleted
_HOUR_S = 3600


@dataclass(slots=True, kw_only=True)
class Volume:
    """One of them."""

    id: int
    offer: Row  # of the machine
    size_gb: int
    label: str
    created_at: float
    free_at: float = 0.0  # when its last instance has been gone for long enough
    users: set[int] = field(default_factory=set)  # instances
    cost: Decimal = Decimal(0)

    @property
    def name(self) -> str:
        """Return what instances call it."""
        return f"V.{self.id}"

    def bill(self, seconds: float) -> Decimal:
        """Count a stretch of time, and return what it costs."""
        per_hour = Decimal(str(self.size_gb * float(self.offer.get("storage_cost") or 0) / MONTH_H))
        cost = Decimal(str(seconds)) * per_hour / _HOUR_S
        self.cost += cost
        return cost

    def row(self, now: float) -> Row:
        """Return what a listing shows."""
        same = ("machine_id", "host_id", "geolocation", "verification", "reliability2", "inet_up", "inet_down", "driver_version")
        return {
            **{name: self.offer.get(name) for name in (*same, "disk_name", "cluster_id", "public_ipaddr")},
            "id": self.id,
            "label": self.label or None,
            "disk_space": float(self.size_gb),
            "status": "ready",
            "start_date": self.created_at,
            "duration": now - self.created_at,
            "instances": sorted(self.users),
        }


def offered(row: Row) -> Row:
    """Return the volume offer of a machine."""
    return {**row, "id": int(row["id"]) + OFFER_IDS, "resource_type": "volume", "num_gpus": 0, "rentable": True, "rented": False}


def wished(body: Any) -> tuple[int | None, int]:
    """Return the volume that a request to rent names, and the size of the one that it wants made; 0: none."""
    info = body.get("volume_info")
    if isinstance(info, dict):
        return (None, int(info.get("size") or 15)) if info.get("create_new") else (_number(info.get("volume_id")), 0)
    links = (str(flag).split(" V.")[1].split(":")[0] for flag in body.get("env") or {} if str(flag).startswith("-v V."))
    return _number(next(links, None)), 0


def _number(value: object) -> int | None:
    text = str(value).removeprefix("V.")
    return int(text) if text.isdecimal() else None
