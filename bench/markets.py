"""Markets made up for choosing among their offers: machines as a provider lists them, and what they would really be like.

The shapes follow what people publish of Vast.ai: prices of a kind spread by a third around its usual one, traffic free or up to 4 cents a
GB, machines that promise much and take a hundredth of it, new and unverified ones that fail at boot more often than their figure says.

Rules for editing: everything follows from the seed; the truth of a machine depends on its market and its id, not on who rents it.
"""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from remote_trainer.drivers.vastai.speeds import GPUS
from remote_trainer.testing.vast.demo import offer

Row = Mapping[str, Any]

#: Kind → share of the market, memory MB, usual $/h, the benchmark figure that machines report, compute capability.
KINDS: Mapping[str, tuple[int, int, float, float, int]] = {
    "RTX 3060": (8, 12288, 0.07, 22, 860),
    "RTX 3090": (14, 24576, 0.17, 45, 860),
    "RTX 4070S Ti": (5, 16376, 0.15, 48, 890),
    "RTX 4090": (22, 24564, 0.34, 90, 890),
    "RTX 5080": (4, 16303, 0.22, 75, 1200),
    "RTX 5090": (14, 32607, 0.48, 130, 1200),
    "RTX A5000": (6, 24564, 0.21, 42, 860),
    "RTX A6000": (6, 49140, 0.42, 55, 860),
    "RTX 6000Ada": (4, 49140, 0.68, 95, 890),
    "L4": (2, 23034, 0.32, 30, 890),
    "L40S": (5, 46068, 0.65, 100, 890),
    "RTX PRO 6000 S": (3, 97887, 0.95, 150, 1200),
    "A100 SXM4": (5, 81920, 0.90, 140, 800),
    "H100 SXM": (6, 81559, 2.05, 260, 900),
    "H200": (3, 143771, 2.60, 290, 900),
}
_PLACES = ("Ohio, US", "California, US", "Texas, US", "Quebec, CA", "Sweden, SE", "Bulgaria, BG", "Poland, PL", "Japan, JP")


@dataclass(frozen=True, slots=True)
class Machine:
    """What renting an offer would come to."""

    speed: float  # RTX 3090 = 1
    boot_s: float
    mbit: float  # that it really takes and gives
    broken: bool  # never gets to work
    usable_look: bool  # if broken: it runs, and is paid, until somebody looks


class Market:
    """One moment's offers of single GPUs."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        rng = random.Random(f"market {seed}")
        #: What the public figures of a kind say too much or too little of.
        self._kinds = {name: math.exp(rng.gauss(0, 0.2)) for name in KINDS}
        self.rows = [self._row(rng, 1000 + number) for number in range(rng.randint(120, 400))]

    def _row(self, rng: random.Random, offer_id: int) -> dict[str, Any]:
        name = rng.choices(list(KINDS), [share for share, *_ in KINDS.values()])[0]
        _, memory, usual, figure, capability = KINDS[name]
        price = round(usual * math.exp(rng.gauss(0, 0.3)), 4)
        verified = rng.random() < 0.7
        reliability = round(1 - min(0.4, rng.expovariate(1 / (0.006 if verified else 0.05))), 4)
        traffic = 0.0 if rng.random() < 0.25 else round(min(0.04, 0.004 * math.exp(rng.gauss(0, 1))), 4)
        claimed = figure * rng.uniform(0.85, 1.05)
        return offer(
            offer_id,
            gpu_name=name,
            gpu_ram=memory,
            gpu_total_ram=memory,
            compute_cap=capability,
            dph_base=price,
            dlperf=round(claimed, 1),
            dlperf_per_dphtotal=round(claimed / price, 1),
            # How the provider scores is its own; it has to do with value for money, and with how reliable a machine is.
            score=round(claimed / price * reliability * math.exp(rng.gauss(0, 0.3)), 2),
            storage_cost=rng.choice((0.08, 0.1, 0.15, 0.15, 0.2, 0.3)),
            inet_down=round(min(9000, 700 * math.exp(rng.gauss(0, 0.9))), 1),
            inet_up=round(min(9000, 400 * math.exp(rng.gauss(0, 1))), 1),
            inet_down_cost=traffic,
            inet_up_cost=traffic,
            reliability=reliability,
            verification="verified" if verified else rng.choice(("unverified", "unverified", "deverified")),
            cuda_max_good=rng.choice((12.2, 12.4, 12.6, 12.8, 12.8, 13.0, 13.0)) if capability < 1200 else 13.0,
            direct_port_count=rng.choice((0, 2, 20, 100, 100, 250)),
            disk_space=float(rng.choice((40, 80, 200, 400, 800, 2000))),
            duration=round(86400 * min(365, 20 * math.exp(rng.gauss(0, 1.3)))),
            geolocation=rng.choice(_PLACES),
            host_id=rng.randint(1, 60),
        )

    def truth(self, row: Row) -> Machine:
        """Return what nobody can read from an offer."""
        rng = random.Random(zlib.crc32(f"{self.seed} {row['machine_id']}".encode()))
        name = str(row["gpu_name"])
        share = rng.uniform(0.15, 0.9)  # of the bandwidth that is promised
        mbit = max(10.0, float(row["inet_down"]) * share)
        doubt = 1 - float(row["reliability2"]) + (0.0 if row["verification"] == "verified" else 0.03)
        return Machine(
            speed=GPUS[name].speed * self._kinds[name] * math.exp(rng.gauss(0, 0.08)),
            boot_s=40 + 8 * _IMAGE_GB * 1000 / mbit + rng.expovariate(1 / 30),
            mbit=mbit,
            broken=rng.random() < min(0.6, 0.02 + 3 * doubt),
            usable_look=rng.random() < 0.5,
        )


_IMAGE_GB = 6.0
