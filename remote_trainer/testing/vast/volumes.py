"""Volumes: disk of one machine that outlives its instances, and is paid until it is deleted.

Rules for editing: as in ``instances``; whole GB, on the machine of its offer only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from remote_trainer.testing.vast.bills import DISK, Meter
from remote_trainer.testing.vast.market import MONTH_H, Row

OFFER_IDS = 500_000  # a volume's offer has its machine's number and so much more
_HELD_S = 30.0  # so long after its instance's end a volume cannot be deleted
_FIRST_ID = 5_001


@dataclass(slots=True, kw_only=True)
class Volume:
    """One of them."""

    id: int
    offer: Mapping[str, Any]  # of the machine
    size_gb: int
    label: str
    created_at: float
    users: set[int] = field(default_factory=set)  # instances
    free_at: float = 0.0  # when its last instance has been gone for long enough
    meter: Meter = field(default_factory=Meter)

    @property
    def name(self) -> str:
        """Return what instances call it."""
        return f"V.{self.id}"

    def bill(self, since: float, until: float) -> Decimal:
        """Count what a stretch of time costs, and return it."""
        per_hour = Decimal(str(self.size_gb * float(self.offer.get("storage_cost") or 0) / MONTH_H))
        return self.meter.add(DISK, since, until, per_hour)

    def row(self, now: float) -> Row:
        """Return what a listing shows."""
        return {
            **{name: self.offer.get(name) for name in _SAME},
            "id": self.id,
            "label": self.label or None,
            "disk_space": float(self.size_gb),
            "status": "ready",
            "start_date": self.created_at,
            "duration": now - self.created_at,
            "instances": sorted(self.users),
        }


_SAME = (
    "machine_id", "host_id", "cluster_id", "geolocation", "verification", "reliability2", "inet_up", "inet_down", "disk_name",
    "driver_version", "public_ipaddr",
)  # fmt: skip


class Volumes:
    """All of an account."""

    def __init__(self) -> None:
        self.there: dict[int, Volume] = {}
        self._past: list[Volume] = []
        self._next = _FIRST_ID

    def every(self) -> tuple[Volume, ...]:
        """Return those that are there, and those that were."""
        return (*self._past, *self.there.values())

    def make(self, offer: Mapping[str, Any], size_gb: int, label: str, now: float) -> Volume:
        """Make one."""
        made = Volume(id=self._next, offer=dict(offer), size_gb=size_gb, label=label, created_at=now)
        self._next += 1
        self.there[made.id] = made
        return made

    def bill(self, since: float, until: float) -> Decimal:
        """Count what a stretch of time costs, and return it."""
        return sum((volume.bill(max(since, volume.created_at), until) for volume in self.there.values()), Decimal(0))

    def leave(self, instance: int, now: float) -> None:
        """An instance is gone: what it used can be deleted some time later."""
        for volume in self.there.values():
            if instance in volume.users:
                volume.users.discard(instance)
                volume.free_at = now + _HELD_S

    def delete(self, number: int) -> None:
        """Forget one."""
        self._past.append(self.there.pop(number))


def offered(row: Mapping[str, Any]) -> Row:
    """Return the volume offer of a machine."""
    return {**row, "id": int(row["id"]) + OFFER_IDS, "resource_type": "volume", "num_gpus": 1, "rentable": True, "rented": False}


def wished(body: Mapping[str, Any]) -> tuple[int | None, int]:
    """Return the volume that a request to rent names, and the size of the one that it wants made; 0: none."""
    info = body.get("volume_info")
    if isinstance(info, dict):
        return (None, int(info.get("size") or 15)) if info.get("create_new") else (_number(info.get("volume_id")), 0)
    links = (str(flag).removeprefix("-v V.").split(":")[0] for flag in body.get("env") or {} if str(flag).startswith("-v V."))
    return _number(next(links, None)), 0


def _number(value: object) -> int | None:
    text = str(value).removeprefix("V.")
    return int(text) if text.isdecimal() else None
