"""What is offered, rented or borrowed, and what it is like. Rules for editing: as in the package's docstring."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any

from remote_trainer.model.plan import Resources


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What could be rented (or borrowed), with its price."""

    id: str
    driver: str
    description: str = ""
    price_per_hour: Decimal = Decimal(0)  # US dollars, disk included; of spot: at the least bid that wins, then ours
    disk_per_hour: Decimal = Decimal(0)  # the part of it that is paid from the request on, whatever state the machine is in
    spot: bool = False  # the provider may take the machine back for somebody who pays more
    most_per_hour: Decimal = Decimal(0)  # what the place's own cap leaves a bid, disk included; 0: it has none
    resources: Resources = Resources()
    machine: str = ""  # the machine behind it, by the provider's id: several offers may be parts of one
    speed: float = 1.0  # how much faster a training runs there than on the driver's reference GPU
    price_per_gb_in: Decimal = Decimal(0)  # US dollars for each GB (10^9 bytes) brought there
    price_per_gb_out: Decimal = Decimal(0)  # and fetched from there
    boot_s: float = 0.0  # how long it is expected to cost money before it can be used
    mbit: float = 0.0  # what its machine promises to take in, Mbit/s; 0: nothing is said
    facts: Mapping[str, Any] = field(default_factory=dict)


class InstanceState(StrEnum):
    """What the provider says of an instance, in our words."""

    STARTING = "starting"
    READY = "ready"  # an address to connect to is known
    STOPPED = "stopped"  # preempted or stopped: costs storage, runs nothing
    BROKEN = "broken"  # will not become ready


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """What is rented (costs money) or borrowed (``borrowed``: somebody else's machine that is never destroyed)."""

    id: str
    label: str
    state: InstanceState = InstanceState.READY
    borrowed: bool = False
    address: Mapping[str, Any] = field(default_factory=dict)  # what the driver's connect() needs; no secrets
    host_key: str = ""  # pinned OpenSSH public key line; empty until first use
    price_per_hour: Decimal = Decimal(0)  # US dollars, disk included, as the provider says now; 0: it does not say
    disk_per_hour: Decimal = Decimal(0)
    min_bid: Decimal = Decimal(0)  # US dollars an hour, without the disk, that a spot machine costs others; 0: not known
    created_at: datetime | None = None
    message: str = ""  # the provider's own words


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """What bootstrap found on a host."""

    incarnation: str  # random, written once on the host's disk: tells a wiped disk
    boot: str  # tells a reboot or container restart
    disk_free: int = 0
    disk_total: int = 0
    mem_total: int = 0
    cpus: int = 0
    gpus: tuple[str, ...] = ()  # "NVIDIA L40S, 46068 MiB, 570.86"
    gpu_mem_mib: tuple[int, ...] = ()  # MiB, as many as gpus
    has: frozenset[str] = frozenset()  # "rsync", "python3", "openssl", "sha256sum", "tar", …
    host_key: str = ""  # OpenSSH public key line seen on the connection; empty where there is none
    cuda: str = ""  # "CUDA 12.8, devices: 2", or why it was not tried; empty where nobody asked
