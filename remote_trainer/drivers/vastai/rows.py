"""Rows of Vast.ai as our values: offers and instances. Pure.

Every field but the id may be missing, null or of another type; a row that cannot be read is no offer, and never a reason to believe that
an instance is gone.

Rules for editing: units are named where they change (the provider counts memory in MB, bandwidth in Mbit/s, storage in $/GB/month).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from types import MappingProxyType
from typing import Any

from remote_trainer.drivers.vastai.speeds import speed
from remote_trainer.model import Instance, InstanceState, Offer, Resources

Row = Mapping[str, Any]

_DRIVER = "vastai"
_BOOT_S = 300.0  # a typical start with an image that is not there yet
_TRAFFIC_MOST = Decimal("0.04")  # US dollars a GB
_MONTH_H = 720  # hours the provider counts in a month of storage

#: Words in ``status_msg`` after which a machine that is loading never runs.
_FATAL = (
    "error response from daemon",
    "failed to pull image",
    "pull access denied",
    "failed to resolve reference",
    "manifest unknown",
    "unauthorized",
    "no space left on device",
    "unexpected eof",
    "oci runtime create failed",
    "docker_build() error writing dockerfile",
    "gpu error, unable to start instance",
    "permission denied",
)
_ENDED = ("stopped", "exited", "frozen")
_MESSAGE_MAX = 300
_SANE = 10**11  # no count, price or time of ours is larger


def offer(row: Row, *, disk_gb: int, spot: bool = False, speeds: Mapping[str, float] = MappingProxyType({})) -> Offer | None:
    """Return an offer priced with a disk of that size, or None for a row that is no GPU machine.

    A spot offer is priced at the least bid that would win now; one whose least bid is not told is none.
    """
    if row.get("id") is None or row.get("resource_type", "gpu") != "gpu":
        return None
    gpus, gpu_part = int(number(row, "num_gpus")), money(row, "min_bid" if spot else "dph_base")
    if gpus < 1 or gpu_part <= 0:
        return None
    disk = cents(money(row, "storage_cost") * disk_gb / _MONTH_H)
    have = Resources(
        gpus=gpus,
        vram_gb=int(number(row, "gpu_ram") / 1000),
        disk_gb=int(number(row, "disk_space")),
        ram_gb=int(_memory_share(row) / 1000),
    )
    name = text(row, "gpu_name") or "unknown GPU"
    return Offer(
        id=str(row["id"]),
        driver=_DRIVER,
        description=f"{gpus} × {name}, {text(row, 'geolocation') or 'somewhere'}{', spot' if spot else ''}",
        price_per_hour=cents(gpu_part) + disk,
        disk_per_hour=disk,
        spot=spot,
        resources=have,
        machine=str(row.get("machine_id") or ""),
        speed=speed(name, gpus, number(row, "dlperf"), overrides=speeds),
        price_per_gb_in=_traffic(row, "inet_down_cost"),
        price_per_gb_out=_traffic(row, "inet_up_cost"),
        boot_s=_BOOT_S,
        mbit=number(row, "inet_down"),
        facts={key: row.get(key) for key in _FACTS},
    )


def cents(amount: Decimal) -> Decimal:
    """Return an amount with the six digits that are kept."""
    return amount.quantize(Decimal("0.000001"))


#: What choosing looks at and a saved offer keeps.
_FACTS = (
    "machine_id",
    "host_id",
    "public_ipaddr",
    "gpu_name",
    "geolocation",
    "verification",
    "reliability2",
    "cuda_max_good",
    "compute_cap",
    "inet_down",
    "inet_up",
    "inet_down_cost",
    "inet_up_cost",
    "direct_port_count",
    "duration",
    "min_bid",
    "dph_base",
    "dlperf",
)


def instance(row: Row) -> Instance | None:
    """Return an instance, or None for a row without id."""
    if row.get("id") is None:
        return None
    state, message = _state(row)
    host, port = endpoint(row)
    started = number(row, "start_date")
    return Instance(
        id=str(row["id"]),
        label=text(row, "label"),
        state=state,
        address={"host": host, "port": port} if host else {},
        price_per_hour=money(row, "dph_total"),
        disk_per_hour=_disk_per_hour(row),
        min_bid=money(row, "min_bid") if row.get("is_bid") is True else Decimal(0),
        created_at=datetime.fromtimestamp(started, UTC) if started > 0 else None,
        message=message,
    )


def _disk_per_hour(row: Row) -> Decimal:
    told = money(row, "storage_total_cost")
    return cents(told or money(row, "storage_cost") * money(row, "disk_space") / _MONTH_H)


def endpoint(row: Row) -> tuple[str, int]:
    """Return the direct way in, host and port; empty while it is not known. The provider's proxy is too slow for data."""
    host, ports = text(row, "public_ipaddr").strip(), row.get("ports")
    bindings = ports.get("22/tcp") if isinstance(ports, dict) else None
    for binding in bindings if isinstance(bindings, list) else ():
        port = str(binding.get("HostPort", "")) if isinstance(binding, dict) else ""
        if host and port.isdecimal() and len(port) <= 5 and 0 < int(port) < 65536:
            return host, int(port)
    return "", 0


def _state(row: Row) -> tuple[InstanceState, str]:
    """Return what the provider says of an instance, in our words, and its own."""
    actual, intended = text(row, "actual_status"), text(row, "intended_status")
    message = " ".join(text(row, "status_msg").split())[:_MESSAGE_MAX]
    # We never ask it to stop: meant to be stopped is outbid, out of credit, or given up by its host. The contract's own state alone
    # says nothing: a healthy instance may begin with it at "stopped".
    halted = intended == "stopped" and (actual != "running" or text(row, "cur_state") == "stopped")
    if actual in _ENDED or halted:
        return InstanceState.STOPPED, message or f"{actual or 'not started'}, meant to be {intended or 'stopped'}"
    if actual == "running":
        return (InstanceState.READY if endpoint(row)[0] else InstanceState.STARTING), message
    if actual in ("", "created", "loading") and any(word in message.lower() for word in _FATAL):
        return InstanceState.BROKEN, message
    # Silence of its host (unknown, offline) says nothing about what runs there.
    return InstanceState.STARTING, message or actual or "scheduled"


def _memory_share(row: Row) -> float:
    """Return our share of the machine's memory, MB: it goes with the share of its cores."""
    cores, ours = number(row, "cpu_cores"), number(row, "cpu_cores_effective")
    return number(row, "cpu_ram") * (min(1.0, ours / cores) if cores and ours else 1.0)


def number(row: Row, name: str) -> float:
    """Return a field as a number, 0 for anything that is none."""
    value = row.get(name)
    try:
        found = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else 0.0
    except (ValueError, OverflowError):
        return 0.0
    return found if abs(found) < _SANE else 0.0  # neither infinite nor NaN


def money(row: Row, name: str) -> Decimal:
    """Return a field as US dollars, 0 for anything that is none: nothing pays us."""
    try:
        found = Decimal(str(row.get(name) or 0))
        return found if found.is_finite() and 0 < found < _SANE else Decimal(0)
    except (ValueError, ArithmeticError):
        return Decimal(0)


def _traffic(row: Row, name: str) -> Decimal:
    """Return the price of a GB; where it is not told, the highest there is."""
    return _TRAFFIC_MOST if row.get(name) is None else money(row, name)


def text(row: Row, name: str) -> str:
    """Return a field as text that can be written down, empty for anything that is none."""
    value = row.get(name)
    return value.encode(errors="replace").decode() if isinstance(value, str) else ""
