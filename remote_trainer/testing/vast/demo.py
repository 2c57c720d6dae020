"""A market to try things in: offers made from a seed, of the shapes and prices that are usual.

Rules for editing: rows carry every field that the official client or ours reads; the same seed makes the same market.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

#: Name → memory MB, compute capability, usual dollars an hour, deep-learning performance.
GPUS: Mapping[str, tuple[int, int, float, float]] = {
    "RTX 3090": (24576, 860, 0.16, 45.0),
    "RTX 4090": (24564, 890, 0.34, 90.0),
    "RTX 5090": (32607, 1200, 0.48, 130.0),
    "L40S": (46068, 890, 0.62, 100.0),
    "A100 SXM4": (81920, 800, 0.90, 140.0),
    "H100 SXM": (81559, 900, 2.10, 260.0),
}
_PLACES = ("Ohio, US", "California, US", "Sweden, SE", "Bulgaria, BG", "Quebec, CA", "Japan, JP")
_START = 1_790_000_000.0


def market(count: int = 40, seed: int = 1) -> list[dict[str, Any]]:
    """Return that many offers of GPU machines, and one of storage alone."""
    rng = random.Random(seed)  # noqa: S311 - a market, not a secret
    offers = [_row(rng, 1000 + number) for number in range(count)]
    return [*offers, {**offer(999, gpu_name="none", num_gpus=0), "resource_type": "disk", "gpu_name": None}]


def _row(rng: random.Random, offer_id: int) -> dict[str, Any]:
    name = rng.choice(list(GPUS))
    gpus = rng.choice((1, 1, 1, 2, 4))
    price = round(GPUS[name][2] * gpus * rng.uniform(0.8, 1.5), 4)
    return offer(
        offer_id,
        gpu_name=name,
        num_gpus=gpus,
        dph_base=price,
        min_bid=round(price * rng.uniform(0.4, 0.8), 4),
        geolocation=rng.choice(_PLACES),
        reliability=round(1 - 6 * (1 - rng.uniform(0.9, 0.9995)) ** 2, 4),  # most are good
        inet_down=round(rng.uniform(80, 4000), 1),
        cuda_max_good=rng.choice((12.2, 12.4, 12.8, 13.0)),
        direct_port_count=rng.choice((0, 2, 20, 100, 100, 250)),
        verification=rng.choice(("verified", "verified", "verified", "unverified")),
        disk_space=float(rng.choice((50, 200, 800))),
        public_ipaddr=f"203.0.113.{offer_id % 250 + 1}",
    )


def offer(offer_id: int, **changes: Any) -> dict[str, Any]:
    """Return one good offer, of its own machine; `changes` are fields by name."""
    name, gpus = changes.get("gpu_name", "RTX 4090"), changes.get("num_gpus", 1)
    memory, capability, price, performance = GPUS.get(name, GPUS["RTX 4090"])
    changes.setdefault("reliability2", changes.get("reliability", 0.995))
    base = changes.setdefault("dph_base", price * gpus)
    return {
        **_MACHINE,
        "id": offer_id,
        "ask_contract_id": offer_id,
        "bundle_id": offer_id + 50_000,
        "machine_id": offer_id + 20_000,
        "host_id": offer_id % 17 + 100,
        "gpu_name": name,
        "num_gpus": gpus,
        "gpu_ram": memory,
        "gpu_total_ram": memory * gpus,
        "gpu_totalram": memory * gpus,
        "compute_cap": capability,
        "dlperf": performance * gpus,
        "dlperf_per_dphtotal": performance * gpus / base if base else 0.0,
        "score": performance * gpus,
        "total_flops": performance * gpus * 0.9,
        "flops_per_dphtotal": performance * gpus * 0.9 / base if base else 0.0,
        "min_bid": round(base * 0.6, 4),
        **changes,
    }


_MACHINE: Mapping[str, Any] = {
    "hosting_type": 0,
    "cluster_id": None,
    "resource_type": "gpu",
    "gpu_frac": 1.0,
    "gpu_arch": "nvidia",
    "gpu_ids": [0],
    "gpu_mem_bw": 1000.0,
    "gpu_lanes": 16,
    "gpu_max_power": 450.0,
    "gpu_max_temp": 90.0,
    "gpu_display_active": False,
    "bw_nvlink": 0.0,
    "pci_gen": 4.0,
    "pcie_bw": 25.0,
    "mobo_name": "simulated",
    "os_version": "22.04",
    "has_avx": 1,
    "cuda_max_good": 12.8,
    "driver_version": "570.86.10",
    "driver_vers": 570086010,
    "cpu_name": "simulated",
    "cpu_arch": "amd64",
    "cpu_ghz": 3.5,
    "cpu_cores": 32,
    "cpu_cores_effective": 16.0,
    "cpu_ram": 128000,
    "disk_space": 500.0,
    "disk_bw": 3000.0,
    "disk_name": "nvme",
    "inet_down": 900.0,
    "inet_up": 800.0,
    "inet_down_cost": 0.003,
    "inet_up_cost": 0.003,
    "direct_port_count": 100,
    "static_ip": True,
    "public_ipaddr": "203.0.113.9",
    "geolocation": "Ohio, US",
    "reliability": 0.995,
    "expected_reliability": 0.995,
    "verification": "verified",
    "vericode": 0,
    "rentable": True,
    "rented": False,
    "external": False,
    "vms_enabled": False,
    "is_bid": False,
    "storage_cost": 0.15,
    "credit_discount_max": 0.0,
    "discount_rate": 0.0,
    "duration": 2_000_000.0,
    "start_date": _START,
    "end_date": _START + 40_000_000.0,
}
