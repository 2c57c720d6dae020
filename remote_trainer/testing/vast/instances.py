"""One rented instance: where it stands on the clock, what the API shows of it, and what it has cost.

Rules for editing: what happens when a step is due is the provider's (``provider.py``); here is only what an instance is. Rows show what the
real ones show, trailing space of the address included.
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum
from typing import Any

from remote_trainer.testing.vast.bills import DISK, DOWN, GPU, UP, Meter
from remote_trainer.testing.vast.doors import Door
from remote_trainer.testing.vast.machines import Address
from remote_trainer.testing.vast.market import MONTH_H, priced

TAIL_S = 120.0
_PULL_ERROR = "Error response from daemon: pull access denied, repository does not exist or may require 'docker login'"
_OCI = "OCI runtime create failed: runc create failed: unable to start container process"
MESSAGES = {"boot-forever": "4f4fb700ef54: Pulling fs layer", "boot-pull-error": _PULL_ERROR, "boot-oci": _OCI, "boot-halted": ""}


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """How long things take, simulated seconds."""

    scheduled_s: float = 5.0  # without a word from its host
    created_s: float = 5.0
    loading_s: float = 240.0  # a cold host
    reboot_s: float = 20.0
    destroy_s: float = 7.0  # until its row is gone


QUICK = Timings(scheduled_s=0.1, created_s=0.1, loading_s=0.8, reboot_s=0.5, destroy_s=0.2)


class Step(Enum):
    """What comes next for an instance, at a time."""

    CREATED = "created"
    LOADING = "loading"
    RUNNING = "running"  # also waits for its machine
    BACK = "back"  # running again, it never was down
    OPEN = "open"  # its door
    KEYS = "keys"  # let in at last
    GONE = "gone"  # also waits for its machine's end


@dataclass(slots=True, kw_only=True)
class Instance:
    """One contract."""

    id: int
    offer: dict[str, Any]
    label: str
    disk_gb: float
    body: dict[str, Any]  # the request that made it
    bid: float | None
    api_key: str
    created_at: float
    actual: str | None = None
    intended: str = "running"
    current: str = "stopped"
    coming: str = "running"
    message: str | None = None
    fault: str = ""  # boot-…
    fault_s: float | None = None
    listed_at: float = 0.0
    found_by_label_at: float = 0.0
    keys: dict[int, str] = field(default_factory=dict)
    plan: list[tuple[float, Step]] = field(default_factory=list)
    machine: Future[Address] | None = None  # its boot
    removal: Future[None] | None = None
    address: Address | None = None
    door: Door | None = None
    running_since: float | None = None
    ended_at: float | None = None
    gone_at: float | None = None
    ran_at_end: bool = False
    suffered: set[str] = field(default_factory=set)  # faults that befell it since it began to run
    queued: bool = False  # outbid, or asked to start without room: starts by itself
    meter: Meter = field(default_factory=Meter)
    log: list[str] = field(default_factory=list)

    # -- time

    def schedule(self, at: float, step: Step) -> None:
        """Add a step."""
        self.plan.append((at, step))
        self.plan.sort(key=lambda each: each[0])

    def due(self) -> float | None:
        """Return when its next step is due; None while it has none, or while the next one waits for its machine."""
        if not self.plan:
            return None
        at, step = self.plan[0]
        if step is Step.RUNNING and (self.machine is None or not self.machine.done()):
            return None
        if step is Step.GONE and self.removal is not None and not self.removal.done():
            return None
        return at

    # -- money

    @property
    def gpu_on(self) -> bool:
        """Return whether its GPU is paid."""
        return self.current == "running" and self.actual in ("running", "unknown")

    def bill(self, since: float, until: float) -> Decimal:
        """Count what a stretch of time costs, and return it."""
        if self.ended_at is not None:
            until = min(until, self.ended_at + (TAIL_S if self.ran_at_end else 0.0))
        if until <= since or self.actual == "offline":
            return Decimal(0)
        gpu = self.gpu_price if self.gpu_on or self.ran_at_end else 0.0
        disk = self.disk_gb * float(self.offer.get("storage_cost") or 0) / MONTH_H
        return self.meter.add(GPU, since, until, Decimal(str(gpu))) + self.meter.add(DISK, since, until, Decimal(str(disk)))

    def carry(self, at: float, *, down_gb: float, up_gb: float) -> Decimal:
        """Count traffic, and return what it costs."""
        before = self.meter.total
        for kind, gb, price in ((DOWN, down_gb, "inet_down_cost"), (UP, up_gb, "inet_up_cost")):
            if gb:
                self.meter.count(kind, at, Decimal(str(gb)) * Decimal(str(self.offer.get(price) or 0)), gb)
        return self.meter.total - before

    @property
    def gpu_price(self) -> float:
        """Return dollars an hour."""
        return float(self.offer["dph_base"]) if self.bid is None else self.bid

    @property
    def billed_until(self) -> float | None:
        """Return when nothing more is paid for it; None while it is there."""
        return None if self.gone_at is None else max(self.gone_at, (self.ended_at or 0.0) + TAIL_S)

    # -- what is shown

    def row(self, now: float, *, by_id: bool = False, floor: float | None = None) -> dict[str, Any]:
        """Return the row that a listing shows, or that a look at this one instance shows; `floor` is the least bid that holds it now."""
        up, proxy = self.actual == "running", self._proxy()
        prices = priced({**self.offer, "dph_base": self.gpu_price}, self.disk_gb)
        return {
            **prices,
            "instance": {**prices["instance"], "totalHour": prices["dph_total"] if self.gpu_on else prices["storage_total_cost"]},
            "id": self.id,
            "label": self.label or None,
            "actual_status": self.actual,
            "intended_status": self.intended,
            "cur_state": self.current,
            "next_state": self.coming,
            "status_msg": self.message,
            "image_uuid": self.body.get("image"),
            "image_runtype": self.body.get("runtype", "ssh"),
            "image_args": self.body.get("args") or [],
            "extra_env": [[name, str(value)] for name, value in dict(self.body.get("env") or {}).items()],
            "onstart": self.body.get("onstart"),
            "jupyter_token": "0" * 32,
            "template_id": None,
            "template_name": None,
            "template_hash_id": None,
            "volume_info": [self.body["volume_info"]] if self.body.get("volume_info") else [],
            "is_bid": self.bid is not None,
            "min_bid": self.offer["min_bid"] if floor is None else floor,
            "disk_space": self.disk_gb,
            "disk_usage": 1.0 if up else -1,
            "disk_util": 0.1 if up else -1,
            "gpu_util": 0.0 if up else None,
            "gpu_temp": 40.0 if up else None,
            "cpu_util": 0.0 if up else None,
            "mem_usage": 0.5 if up else None,
            "mem_limit": 64.0 if up else None,
            "vmem_usage": 0.0 if up else None,
            "public_ipaddr": f"{self.address[0]} " if self.address else "",
            "ssh_host": proxy[0],
            "ssh_port": proxy[1],
            "ssh_idx": "4",
            "ports": self._ports(by_id) if up else None,
            "direct_port_start": -1,
            "direct_port_end": -1,
            "machine_dir_ssh_port": self.address[1] if self.address else None,
            "country_code": str(self.offer.get("geolocation") or "").rpartition(", ")[2],
            "start_date": self.created_at,
            "duration": now - self.created_at,
            "uptime_mins": None if self.running_since is None else (now - self.running_since) / 60,
        }

    def _proxy(self) -> Address:
        """Return the way in by the provider's proxy; there is none here, so it is the machine itself."""
        return self.address or ("ssh4.vast.ai", 10_000 + self.id % 20_000)

    def _ports(self, by_id: bool) -> Any:
        if self.address is None or self.fault == "boot-proxy-only" or (by_id and self.fault == "boot-no-ports-by-id"):
            return None if self.fault != "boot-proxy-only" else {}
        if self.fault == "boot-ports-list":
            return [22, self.address[1]]
        port = str(self.address[1])
        return {"22/tcp": [{"HostIp": "0.0.0.0", "HostPort": port}, {"HostIp": "::", "HostPort": port}]}  # noqa: S104
